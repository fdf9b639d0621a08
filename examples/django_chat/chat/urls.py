"""Pages and the WebSocket."""

from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path
from django.views.static import serve

from chat import settings, views

urlpatterns = [
    path("", views.rooms, name="rooms"),
    path("room/<slug:name>/", views.room, name="room"),
    path("room/<slug:name>/socket", views.socket, name="socket"),
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("signup/", views.SignUp.as_view(), name="signup"),
    # In production the files of a site are nginx's, or WhiteNoise's.
    path("static/<path:path>", serve, {"document_root": settings.FOLDER.parent.parent / "chat_static"}, name="static"),
]
