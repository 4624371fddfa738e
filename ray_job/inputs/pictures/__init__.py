"""A row's pictures: fetched from where the job may read, and decoded safely."""
