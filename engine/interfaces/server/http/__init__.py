"""The service over HTTP: ``application.make_app`` makes the application, ``listening`` serves it on a socket."""
