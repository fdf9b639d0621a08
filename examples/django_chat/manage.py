"""A chat beside ordinary pages, in Django, with Django's own users and sessions. Who is not logged in gets no WebSocket.

Needs Django. In this folder, once:

    python manage.py migrate

and then either of

    python -m gws_gevent serve --wsgi chat.wsgi:application --patch
    gunicorn -k gws_gevent.integrations.gunicorn.GwsWorker chat.wsgi

Then open the address it prints, and sign up. Each room is a page: /room/garden/ is the room "garden".
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat.settings")
    execute_from_command_line(sys.argv)
