"""What was said."""

from django.conf import settings
from django.db import models


class Line(models.Model):
    """One message in a room."""

    room = models.SlugField()
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    text = models.TextField()
    said = models.DateTimeField(auto_now_add=True)
