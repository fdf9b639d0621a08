"""The known pains of flask-sock, simple-websocket and Flask-SocketIO on gevent's own server, each reproduced.

Their counterparts under ours are in test_flask_sock.py and test_engineio.py. A test that fails here because a new release of theirs
has mended something is good news.
"""
