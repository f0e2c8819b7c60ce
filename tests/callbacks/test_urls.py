"""The signed URL: who made it, what it carries, how long it gets."""

from __future__ import annotations

import base64
import hmac
import pickle
import pprint
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async import Call, ConfigurationError
from fuse_async import _callback_urls as urls
from fuse_async.callbacks import CallbackReceiver

SECRET = "canary-secret-0123456789"
BASE = "https://calls.example.com/fuse"


def signers(secret: object = SECRET) -> urls.Signers:
    found = urls.read_secrets(secret)
    assert isinstance(found, urls.Signers)
    return found


@pytest.mark.parametrize(
    ("names", "says"),
    [
        pytest.param({"key": "order-4711"}, urls.Address(key="order-4711"), id="key"),
        pytest.param({"campaign": "Mai ü"}, urls.Address(campaign="Mai ü"), id="campaign"),
        pytest.param({}, urls.Address(), id="neither"),
        pytest.param({"key": "a/b?c=d#e%2f é\U0001f600"}, None, id="key-of-odd-signs"),
    ],
)
def test_url_says_what_it_was_made_of(names: dict[str, str], says: urls.Address | None) -> None:
    url = CallbackReceiver(SECRET).url(BASE, **names)
    assert url.startswith(BASE + "/")
    assert url.isascii()
    assert signers().read(urlsplit(url).path) == (says or urls.Address(**names))
    Call("6175550101", result_url=url)


def test_url_is_the_same_each_time_so_that_calls_can_share_an_upload() -> None:
    first, second = CallbackReceiver(SECRET), CallbackReceiver(SECRET.encode())
    assert first.url(BASE, campaign="May") == second.url(BASE + "/", campaign="May")
    assert first.url(BASE) == second.url(BASE)


@pytest.mark.parametrize("prefix", ["", "/fuse", "/a/b/c/d", "/_k/x"])
def test_what_stands_before_is_not_signed(prefix: str) -> None:
    """A proxy strips a prefix, or a framework mounts under another one."""
    path = urlsplit(CallbackReceiver(SECRET).url(BASE, "order-1")).path.removeprefix("/fuse")
    assert signers().read(prefix + path) == urls.Address(key="order-1")
    assert signers().read(prefix + path + "/") == urls.Address(key="order-1")


def changed(path: str) -> dict[str, str]:
    head, form, value, mac = path.rsplit("/", 3)
    other = CallbackReceiver("another-secret-0123456").url(BASE, "order-1")
    flipped = ("B" if mac[0] == "A" else "A") + mac[1:]
    other_value = base64.urlsafe_b64encode(b"order-2").decode().rstrip("=")
    return {
        "another secret": urlsplit(other).path,
        "another form": f"{head}/_c/{value}/{mac}",
        "unknown form": f"{head}/k/{value}/{mac}",
        "another value": f"{head}/{form}/{other_value}/{mac}",
        "padded value": f"{head}/{form}/{value}=/{mac}",
        "no base64": f"{head}/{form}/%%%/{mac}",
        "not ASCII": f"{head}/{form}/{value}/{mac[:-1]}é",
        "a half surrogate": f"{head}/{form}/\udcff/{mac[:-1]}\udcff",
        "one sign changed": f"{head}/{form}/{value}/{flipped}",
        "last sign changed": f"{head}/{form}/{value}/{mac[:-1]}{'B' if mac[-1] == 'A' else 'A'}",
        "cut": path[:-1],
        "longer": path + "A",
        "no signature": f"{head}/{form}/{value}",
        "empty signature": f"{head}/{form}/{value}/",
        "nothing": "",
        "root": "/",
        "a lot": path + "/" * 3 + "A" * 100_000,
        "lower case": path.lower(),
    }


PATH = urlsplit(CallbackReceiver(SECRET).url(BASE, "order-1")).path


@pytest.mark.parametrize("what", sorted(changed(PATH)))
def test_wrong_path_is_not_believed_and_costs_the_same_work(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By structure, not by a clock: one signature, one comparison of equal lengths, for each."""
    done: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(a: bytes, b: bytes) -> bool:
        done.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    assert signers().read(changed(PATH)[what]) is None
    assert done == [(24, 24)]
    assert signers().read(PATH) == urls.Address(key="order-1")
    assert done[1:] == [(24, 24)]


def test_all_secrets_are_believed_and_the_first_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "the-old-secret-012345", b"the-new-secret-012345"
    both = CallbackReceiver([new, old])
    assert both.url(BASE, "a") == CallbackReceiver(new).url(BASE, "a")
    done: list[bool] = []
    compare = hmac.compare_digest

    def watched(a: bytes, b: bytes) -> bool:
        done.append(True)
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    for secret in (old, new):
        path = urlsplit(CallbackReceiver(secret).url(BASE, "a")).path
        assert signers([new, old]).read(path) == urls.Address(key="a")
    assert len(done) == 4, "each secret is compared, whichever fits"


@pytest.mark.parametrize(
    "secret",
    ["", "short", b"fifteen bytes..", [], [SECRET, "short"], None, 7, [7], {}, ["x" * 16, None]],
    ids=repr,
)
def test_bad_secret_is_refused_without_being_shown(secret: object) -> None:
    with pytest.raises(ConfigurationError, match="secret") as caught:
        CallbackReceiver(secret)  # type: ignore[arg-type]
    trace = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    package = str(Path(urls.__file__).parent)
    frames = [frame.locals for frame in trace.stack if frame.filename.startswith(package)]
    assert frames
    assert not re.search("fifteen|canary|short", f"{frames} {caught.value}")


@pytest.mark.parametrize("secret", ["sixteen bytes ok", b"sixteen bytes ok", "ü" * 8], ids=ascii)
def test_sixteen_bytes_are_enough(secret: str | bytes) -> None:
    CallbackReceiver(secret)


def test_secret_is_in_no_repr_and_in_no_pickle() -> None:
    receiver = CallbackReceiver([SECRET, SECRET + "2"])
    shown = [repr(receiver), str(receiver), pprint.pformat(vars(receiver))]
    assert SECRET not in " ".join(shown)
    assert repr(receiver) == "<CallbackReceiver: new, 0 waiting, 0 being handled>"
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(receiver._signers)


@pytest.mark.parametrize(
    "base",
    [
        "http://calls.example.com/fuse",
        "http://10.0.0.1",
        "http://localhost.example.com",
        "ftp://calls.example.com",
        "calls.example.com/fuse",
        "//calls.example.com",
        "https://",
        "https://:443/fuse",
        "https://calls.example.com:0",
        "https://calls.example.com:99999",
        "https://user:canary@calls.example.com",
        "https://calls.example.com/fuse?token=canary",
        "https://calls.example.com/fuse#part",
        "https://calls.example.com/two words",
        "https://calls.example.com/\nHost: x",
        "https://cälls.example.com",
        "https://[::1",
        "",
        None,
        7,
    ],
    ids=ascii,
)
def test_bad_base_is_refused_without_being_shown(base: object) -> None:
    with pytest.raises(ConfigurationError, match="base") as caught:
        CallbackReceiver(SECRET).url(base)  # type: ignore[arg-type]
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "base",
    [
        "https://calls.example.com",
        "https://calls.example.com:8443/a/b/",
        "http://127.0.0.1:8080/fuse",
        "http://localhost:8080",
        "http://[::1]:8080",
        "HTTPS://CALLS.EXAMPLE.COM",
    ],
)
def test_good_base_is_taken(base: str) -> None:
    assert CallbackReceiver(SECRET).url(base, "a").startswith(base.rstrip("/") + "/_k/")


@pytest.mark.parametrize(
    "names",
    [{"key": ""}, {"key": 7}, {"campaign": ""}, {"key": "\ud800"}, {"key": "a", "campaign": "b"}],
    ids=ascii,
)
def test_bad_name_is_refused(names: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        CallbackReceiver(SECRET).url(BASE, **names)


@pytest.mark.parametrize("host", range(18, 24))
def test_no_url_has_255_characters(host: int) -> None:
    """The error says how much room there is, and that much fits."""
    receiver = CallbackReceiver(SECRET)
    base = f"https://{'h' * host}.example"
    longest = max(n for n in range(1, 300) if len(base) + 4 + -(-n * 4 // 3) + 25 <= 254)
    url = receiver.url(base, "k" * longest)
    assert len(url) <= 254
    Call("6175550101", result_url=url)
    for name in ("key", "campaign"):
        with pytest.raises(ConfigurationError, match=f"room for {longest} bytes") as caught:
            receiver.url(base, **{name: "k" * (longest + 1)})
        assert "kkk" not in str(caught.value)


def test_base_alone_can_be_too_long() -> None:
    with pytest.raises(ConfigurationError, match="base is too long"):
        CallbackReceiver(SECRET).url("https://calls.example.com/" + "a" * 220)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_every_name_comes_back(name: str) -> None:
    receiver = CallbackReceiver(SECRET)
    read: Callable[[str], urls.Address | None] = signers().read
    assert read(urlsplit(receiver.url("https://x", name)).path) == urls.Address(key=name)
    path = urlsplit(receiver.url("https://x", campaign=name)).path
    assert read(path) == urls.Address(campaign=name)


@given(st.text(max_size=60))
def test_no_path_makes_it_raise(path: str) -> None:
    assert signers().read(path) is None
