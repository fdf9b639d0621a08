"""For gunicorn."""
