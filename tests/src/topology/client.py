# Put before scripts that run in a container, on the host or outside.
import socket, struct

def ask(kind, address, port=7000, data=b"x"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, kind)
    s.settimeout(4)
    try:
        s.connect((address, port))
        if kind == socket.SOCK_DGRAM:
            s.send(data)
        answer = b""
        while True:
            part = s.recv(4096)
            answer += part
            if not part or kind == socket.SOCK_DGRAM:
                return answer.decode(errors="replace")
    except OSError as e:
        return f"failed: {e}"
    finally:
        s.close()

def tcp(address, port=7000):
    return ask(socket.SOCK_STREAM, address, port)

def udp(address, port=7000, data=b"x"):
    return ask(socket.SOCK_DGRAM, address, port, data)

def own(family):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.connect(("198.51.100.10" if family == socket.AF_INET else "2001:db8:0:2::10", 9))
    return s.getsockname()[0]
