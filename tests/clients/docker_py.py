# What people do with docker-py, in one go; each outcome is printed as one line. Arguments: the client's address, and
# "attached" if each container is to have an interface of weave's.
import io
import sys
import tarfile
import threading

import docker

client = docker.DockerClient(base_url=sys.argv[1], version="auto", timeout=120)
api = client.api
attached = sys.argv[2:] == ["attached"]
SLEEP = ["sleep", "100000"]


def say(what, *outcome):
    print(what, *outcome, flush=True)


def archive(**files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def has_interface(container):
    """A container that runs has been attached before anybody can use it."""
    code, text = container.exec_run(["ip", "-4", "-o", "address", "show", "dev", "ethwe"])
    assert (code == 0 and b" inet 10.32." in text) == attached, (container.name, code, text)


def start(name, command=SLEEP, **options):
    container = client.containers.create("box", command, name=name, network_mode="none", **options)
    container.start()
    container.reload()
    return container


def error(call, *args, **options):
    try:
        call(*args, **options)
    except docker.errors.APIError as refused:
        return refused.response.status_code
    raise AssertionError("not refused")


def images():
    context = archive(Dockerfile='FROM box\nCOPY file /file\nRUN busybox cat /file\nCMD ["busybox", "cat", "/file"]\n', file="built\n")
    image, log = client.images.build(fileobj=io.BytesIO(context), custom_context=True, tag="built", rm=True)
    assert any(line.get("stream") == "built\n" for line in log)
    assert image.tag("other", "tag") and client.images.get("other:tag").id == image.id
    saved = b"".join(image.save(named=True))
    client.images.remove("other:tag")
    client.images.remove("built", force=True)
    say("removed image", error(client.images.get, "built"))
    (loaded,) = client.images.load(saved)
    assert loaded.id == image.id
    say("image", client.containers.run("built", remove=True, network_mode="none"))
    api.import_image_from_data(archive(data="x" * 100000), repository="imported")
    assert client.images.list("imported")
    # Docker says 400; the proxy, as the original has it, 500.
    assert error(client.containers.create, "imported") in (400, 500)
    say("no image", error(api.create_container, "nope", "true"))


def execs():
    container = start("exec")
    has_interface(container)
    say("exec", container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True))
    say("exec on a terminal", container.exec_run(["sh", "-c", "echo terminal"], tty=True))
    say("exec that streams", b"".join(container.exec_run(["busybox", "seq", "3"], stream=True).output))
    made = api.exec_create("exec", ["busybox", "cat"], stdin=True)["Id"]
    stream = api.exec_start(made, socket=True)._sock
    stream.sendall(b"to and fro\n")
    received = b""
    while b"fro" not in received:
        received += stream.recv(100)
    say("exec with input", received)
    stream.close()
    assert api.exec_inspect(made)["ID"] == made
    say("exec in nothing", error(api.exec_create, "nope", "true"))
    container.remove(force=True)


def streams():
    container = client.containers.create("box", ["busybox", "cat"], name="cat", stdin_open=True, network_mode="none")
    stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})._sock
    container.start()
    stream.sendall(b"hello\n")
    received = b""
    while b"hello" not in received:
        received += stream.recv(100)
    say("attached", received)
    stream.close()
    say("logs", container.logs())
    container.remove(force=True)
    terminal = client.containers.run("box", ["sh", "-c", "echo terminal"], tty=True, remove=True, network_mode="none")
    say("terminal", terminal)
    script = "for n in 1 2 3; do echo $n; done; while [ ! -e /go ]; do busybox usleep 20000; done; echo gone"
    container = start("logs", ["sh", "-c", script])
    follow = container.logs(stream=True, follow=True)
    first = b""
    while first.count(b"\n") < 3:
        first += next(follow)
    say("first lines", first)
    container.put_archive("/", archive(go=""))
    say("last lines", b"".join(follow))
    say("ended", container.wait()["StatusCode"], container.logs(tail=1))
    container.remove()
    try:
        client.containers.run("box", ["sh", "-c", "echo why >&2; exit 5"], remove=True, network_mode="none")
    except docker.errors.ContainerError as failed:
        say("failed", failed.exit_status, failed.stderr)


def lives():
    events = client.events(decode=True, filters={"container": "life"})
    seen = []

    def listen():
        for event in events:
            seen.append(event["Action"])
            if event["Action"] == "destroy":
                return

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    container = start("life", labels={"key": "value"}, environment={"A": "b"}, mem_limit=1 << 27)
    has_interface(container)
    stats = container.stats(stream=False)
    assert stats["name"] == "/life" and stats["pids_stats"]["current"] >= 1, stats
    assert next(container.stats(decode=True))["name"] == "/life"
    assert any("sleep" in " ".join(row) for row in container.top()["Processes"])
    container.put_archive("/", archive(copied="x" * 200000))
    pieces, about = container.get_archive("/copied")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        say("archive", about["size"], len(tar.extractfile("copied").read()))
    say("changed", sorted(change["Path"] for change in container.diff() if change["Path"] == "/copied"))
    container.pause()
    container.reload()
    say("paused", container.status)
    container.unpause()
    has_interface(container)
    container.rename("renamed")
    assert client.containers.get("renamed").id == container.id
    container.rename("life")
    container.update(mem_limit=1 << 28, memswap_limit=1 << 28)
    container.restart(timeout=0)
    has_interface(container)
    container.reload()
    say("updated", container.status, container.attrs["HostConfig"]["Memory"], container.labels)
    assert container in client.containers.list(filters={"label": "key=value"})
    say("committed", container.commit("committed").tags)
    container.kill()
    say("killed", container.wait()["StatusCode"])
    container.start()
    has_interface(container)
    container.stop(timeout=0)
    say("stopped", container.wait()["StatusCode"])
    waiting = client.containers.create("box", "true", name="pruned", network_mode="none")
    pruned = client.containers.prune()["ContainersDeleted"]
    assert {container.id, waiting.id} <= set(pruned), pruned
    listening.join(60)
    assert not listening.is_alive()
    say("events", [action for action in seen if not action.startswith(("exec", "top"))])
    say("gone", error(container.start), error(container.stop), error(container.reload))


def volumes_and_networks():
    volume = client.volumes.create("volume")
    mounted = {"volume": {"bind": "/data", "mode": "rw"}}
    run = lambda script: client.containers.run("box", ["sh", "-c", script], volumes=mounted, remove=True, network_mode="none")
    run("echo kept > /data/file")
    say("volume", run("busybox cat /data/file"), [one.name for one in client.volumes.list()])
    volume.remove()
    network = client.networks.create("own", driver="bridge", internal=True)
    container = start("networked")
    network.reload()
    say("network", network.name, network.attrs["Internal"], [one.name for one in client.networks.list(names=["own"])])
    say("not connected", error(network.connect, container))
    container.remove(force=True)
    network.remove()
    say("no network", error(network.reload))


say("ping", client.ping(), client.version()["ApiVersion"], client.info()["Driver"])
for part in (images, execs, streams, lives, volumes_and_networks):
    part()
say("left", [container.name for container in client.containers.list(all=True)])
