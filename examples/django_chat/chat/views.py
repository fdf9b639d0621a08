"""The pages, and the way into a room's WebSocket."""

from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.signals import user_logged_out
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse_lazy
from django.utils.text import slugify
from django.views.generic import CreateView

from chat.models import Line
from chat.rooms import Chat
from gws_gevent import ServerOptions, Upgrader

chat = Chat()
user_logged_out.connect(chat.log_out)
upgrader = Upgrader(chat, ServerOptions(read_max_payload_size=4096))


@login_required
def rooms(request: HttpRequest) -> HttpResponse:
    wanted = slugify(request.GET.get("name", ""))
    if wanted:
        return redirect("room", wanted)
    names = Line.objects.order_by("room").values_list("room", flat=True).distinct()
    return render(request, "rooms.html", {"names": names})


@login_required
def room(request: HttpRequest, name: str) -> HttpResponse:
    return render(request, "room.html", {"name": name})


def socket(request: HttpRequest, name: str) -> HttpResponse:
    # Browsers send cookies along with any page's WebSocket: only the Origin tells that it was a page of ours.
    if request.headers.get("Origin") != f"{request.scheme}://{request.get_host()}":
        return HttpResponse("This is for our own pages.\n", status=403)
    if not request.user.is_authenticated:
        return HttpResponse("Log in first.\n", status=401)
    upgrader.upgrade(request.environ, session={"room": name, "user": request.user.pk, "name": request.user.get_username()})
    return HttpResponse()  # goes nowhere: a view has to return something


class SignUp(CreateView):
    """A form for a name and a password."""

    form_class = UserCreationForm
    template_name = "registration/signup.html"
    success_url = reverse_lazy("login")
