"""Building images: the Dockerfile language, and what carries it out."""
