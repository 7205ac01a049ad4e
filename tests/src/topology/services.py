"""What serves in a network namespace of a test: `services.py NAME [dns]`.

Waits for a line, binds, says "serving", and ends with its standard input. On port 7000 it tells
over TCP and UDP its name and who asks, IPv4 and IPv6; UDP port 7001 notes who sent what, and TCP
port 7001 tells it. With `dns` it answers every question for names, on port 53 of all addresses.
"""
import os, socket, struct, sys, threading

name, dns = sys.argv[1], "dns" in sys.argv[2:]
noted = []


def plain(address):
    return address[0].removeprefix("::ffff:")


def bound(kind, port):
    s = socket.socket(socket.AF_INET6, kind)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        s.listen(64)
    return s


def tcp(port, answer):
    s = bound(socket.SOCK_STREAM, port)

    def serve():
        while True:
            c, peer = s.accept()
            threading.Thread(target=answer, args=(c, peer), daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()


def udp(port, answer):
    s = bound(socket.SOCK_DGRAM, port)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)

    def serve():
        while True:
            data, control, _, peer = s.recvmsg(4096, 256)
            reply = answer(data, peer)
            # From the address that was asked, whichever interface leads back.
            control = [(level, kind, value[:16] + bytes(4)) for level, kind, value in control]
            if reply is not None:
                try:
                    s.sendmsg([reply], control, 0, peer)
                except OSError:
                    pass
    threading.Thread(target=serve, daemon=True).start()


def who(peer):
    return f"{name} sees {plain(peer)}".encode()


def tell_who(c, peer):
    c.sendall(who(peer))
    c.close()


def tell_noted(c, peer):
    c.sendall("\n".join(noted).encode())
    c.close()


def note(data, peer):
    noted.append(f"{plain(peer)} {data.decode(errors='replace')}")


def resolve(question, _=None):
    """A for 198.51.100.10, AAAA for 2001:db8:0:2::10."""
    at = 12
    while question[at]:
        at += question[at] + 1
    kind = struct.unpack("!H", question[at + 1:at + 3])[0]
    data = {1: socket.inet_aton("198.51.100.10"),
            28: socket.inet_pton(socket.AF_INET6, "2001:db8:0:2::10")}.get(kind)
    head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, 1 if data else 0, 0, 0)
    body = question[12:at + 5]
    if data:
        body += b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data
    return head + body


def resolve_tcp(c, _):
    while True:
        length = c.recv(2)
        if len(length) < 2:
            return
        answer = resolve(c.recv(struct.unpack("!H", length)[0]))
        c.sendall(struct.pack("!H", len(answer)) + answer)


print("here", flush=True)
sys.stdin.readline()
tcp(7000, tell_who)
udp(7000, lambda data, peer: who(peer))
tcp(7001, tell_noted)
udp(7001, note)
if dns:
    tcp(53, resolve_tcp)
    udp(53, resolve)
print("serving", flush=True)
sys.stdin.read()
os._exit(0)
