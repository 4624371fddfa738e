"""All that knows Ray besides the pipeline: sessions, workers, submission, Kubernetes, signals."""
