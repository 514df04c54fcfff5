"""What became of a slide, as one HTML page that needs neither network nor server."""
