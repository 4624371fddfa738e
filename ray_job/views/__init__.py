"""What people look at: progress, previews, galleries and the HTML page."""
