"""The page on which a person plays and marks episodes: its server, and the judge's opinion beside the outcome."""
from __future__ import annotations

import http.client
import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from episode_maker import START_NS, bar_position_m, record
from PIL import Image

from world_gymnast_ros import cli
from world_gymnast_ros.episodes import EpisodeWriter, add_judgement, check, mark_outcome, read_episode, read_outcome
from world_gymnast_ros.episodes.review import MAX_RATE_HZ, Review, ReviewServer, network_address
from world_gymnast_ros.episodes.schemas import RAW_IMAGE, header_of, message_class, serialize
from world_gymnast_ros.errors import BadConfig, EpisodeError
from world_gymnast_ros.types import Judgement

NOW_NS = START_NS + 10**12


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded")
    for name in ("a", "b"):
        record(root, name, chunks=2)
    EpisodeWriter(root, "cut", {}, START_NS, 0)
    return root


@pytest.fixture
def served(tmp_path: Path, recorded: Path) -> Iterator[tuple[ReviewServer, Path]]:
    shutil.copytree(recorded, tmp_path / "episodes")
    with ReviewServer(Review(tmp_path / "episodes", lambda: NOW_NS), 0, "al</script>ice") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server, tmp_path / "episodes"
        server.shutdown()
        thread.join()


def ask(server: ReviewServer, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    data = None if body is None else json.dumps(body).encode()
    kinds = {} if body is None else {"Content-Type": "application/json"}
    connection.request("GET" if body is None else "POST", path, data, {**kinds, **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def told(server: ReviewServer, path: str, body: object = None) -> dict | list:
    status, content = ask(server, path, body)
    assert status == 200, content
    return json.loads(content)


def test_episodes_are_listed_and_played_at_their_own_times(served: tuple[ReviewServer, Path]) -> None:
    server, root = served
    assert [e["id"] for e in told(server, "/episodes")] == ["a", "b"], "one that is not finished is not offered"
    shown = told(server, "/episode/a")
    episode = read_episode(root / "a")
    times_s = np.array(shown["images_s"])
    assert times_s[0] == 0 and np.diff(times_s).min() >= 0.9 / MAX_RATE_HZ and len(shown["steps"]) == len(episode.steps)
    np.testing.assert_allclose([s["mm"] for s in shown["steps"]], 1000 * np.abs(episode.actions[:, 0]), atol=0.1)
    seen_s = (episode.frame_stamps_ns - episode.frame_stamps_ns[0]) * 1e-9
    compared = 0
    for number, at_s in enumerate(times_s):
        status, jpeg = ask(server, f"/image/a/{number}.jpg")
        assert status == 200
        rgb = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        for t in np.flatnonzero(np.abs(seen_s - at_s) < 1e-6):
            assert bar_position_m(rgb) == bar_position_m(episode.frames[t])
            compared += 1
    assert compared >= 3
    page = ask(server, "/")[1].decode()
    assert "<\\/script>ice" in page or "\\u003c/script>ice" in page, "a name must not end the script"


def test_a_person_marks_and_the_judge_stands_beside(served: tuple[ReviewServer, Path]) -> None:
    server, root = served
    add_judgement(root / "a", "reflector", Judgement(0.9, done_at=3), START_NS)
    said = told(server, "/mark/a", {"outcome": "failure", "marked_by": " alice ", "partial_score": 0.7})
    assert (said["outcome"], said["marked_by"], said["partial_score"]) == ("failure", "alice", 0.7)
    assert said["judgements"][0]["score"] == 0.9
    told(server, "/mark/a", {"outcome": "success", "marked_by": "bob", "partial_score": None})
    marked = read_outcome(root / "a")
    assert (marked.outcome, marked.marked_by, marked.partial_score) == ("success", "bob", None)
    assert marked.marked_ns == NOW_NS
    assert marked.judgements[0]["score"] == 0.9 and check(root / "a") == []
    assert told(server, "/episodes")[0]["outcome"] == "success"
    assert read_outcome(root / "b").outcome == "unknown"


@pytest.mark.parametrize(("path", "body", "status"), [
    ("/mark/a", {"outcome": "won", "marked_by": "alice"}, 400), ("/mark/a", {"outcome": "success"}, 400),
    ("/mark/a", {"outcome": "success", "marked_by": "al", "partial_score": 2}, 400), ("/mark/a", [1], 400),
    ("/mark/a", {"outcome": "success", "marked_by": "al", "partial_score": "much"}, 400),
    ("/mark/nobody", {"outcome": "success", "marked_by": "alice"}, 400),
    ("/mark/cut.partial", {"outcome": "success", "marked_by": "alice"}, 400),
    ("/mark/..", {"outcome": "success", "marked_by": "alice"}, 400), ("/mark/a/b", {}, 404),
    ("/mark/a", {"marked_by": "x" * 5000}, 413), ("/image/a/999.jpg", None, 400), ("/image/a/-1.jpg", None, 404),
    ("/image/a/1e9.jpg", None, 404), ("/episode/..%2f..%2fetc", None, 400), ("/etc/passwd", None, 404),
])
def test_what_is_wrong_is_refused_and_changes_nothing(
    served: tuple[ReviewServer, Path], path: str, body: object, status: int
) -> None:
    server, root = served
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    got, content = ask(server, path, body)
    assert got == status and json.loads(content)["error"]
    assert before == {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_another_sites_page_cannot_mark(served: tuple[ReviewServer, Path]) -> None:
    server, root = served
    mark = {"outcome": "success", "marked_by": "mallory"}
    assert ask(server, "/mark/a", mark, Host="evil.example")[0] == 403, "a foreign name that points here"
    assert ask(server, "/episodes", Host="evil.example")[0] == 403
    assert ask(server, "/mark/a", mark, **{"Content-Type": "text/plain"})[0] == 415, "what a form can send"
    assert read_outcome(root / "a").outcome == "unknown"


@pytest.fixture
def open_to_network(tmp_path: Path, recorded: Path) -> Iterator[ReviewServer]:
    shutil.copytree(recorded, tmp_path / "episodes")
    with ReviewServer(Review(tmp_path / "episodes", lambda: NOW_NS), 0, "", "127.0.0.2") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_on_the_network_nothing_is_served_without_the_token(open_to_network: ReviewServer) -> None:
    server = open_to_network
    assert server.url == f"http://127.0.0.2:{server.server_address[1]}/?token={server.token}" and len(server.token) > 20

    def asked(path: str, body: object = None, **headers: str) -> tuple[int, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.2", server.server_address[1], timeout=20)
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json",
                                                                           **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer

    mark = {"outcome": "success", "marked_by": "mallory"}
    wrong = [{}, {"Cookie": "review="}, {"Cookie": "review=guess"}, {"Cookie": "review=\xe9"}, {"Cookie": ";;="},
             {"Cookie": f"other={server.token}"}]
    for headers in wrong:
        for path in ("/", "/episodes", "/episode/a", "/image/a/0.jpg", "/?token=guess", "/?token=", "/?token=%C3%A9"):
            assert asked(path, **headers)[0] == 403, (path, headers)
        assert asked("/mark/a", mark, **headers)[0] == 403
        assert asked(f"/mark/a?token={server.token}", mark, **headers)[0] == 403, "no other page can write an address"
    status, first = asked(f"/?token={server.token}")
    assert status == 303 and first.headers["Location"] == "/" and "HttpOnly" in first.headers["Set-Cookie"]
    cookie = first.headers["Set-Cookie"].split(";")[0]
    assert asked("/", Cookie=cookie)[0] == asked("/episodes", Cookie=cookie)[0] == 200
    assert asked("/episodes", Cookie=cookie, Host="evil.example")[0] == 403, "a foreign name that points here"
    assert asked("/mark/a", mark, Cookie=cookie)[0] == 200


def test_loopback_is_what_is_listened_to_unless_asked(served: tuple[ReviewServer, Path]) -> None:
    server, _ = served
    assert server.server_address[0] == "127.0.0.1" and server.token == "" and server.url.endswith("/")


def test_a_network_address_is_found_and_one_of_another_machine_refused(recorded: Path) -> None:
    try:
        found = network_address()
    except BadConfig as error:
        assert "--lan ADDRESS" in str(error)
    else:
        assert len(found.split(".")) == 4
    with pytest.raises(BadConfig, match=r"192\.0\.2\.77 cannot be opened.*--lan"):
        ReviewServer(Review(recorded, lambda: NOW_NS), 0, "", "192.0.2.77")


def test_one_of_several_cameras_is_chosen(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "two", {}, START_NS, 0)
    for topic, value in (("/image_raw", 40), ("/wrist/image_raw", 200)):
        image = message_class(RAW_IMAGE)(header=header_of(START_NS, ""), height=48, width=64, encoding="rgb8",
                                         is_bigendian=0, step=192, data=np.full(48 * 64 * 3, value, np.uint8))
        writer.write(topic, RAW_IMAGE, serialize(RAW_IMAGE, image), START_NS)
    writer.close("done", START_NS + 1)
    with pytest.raises(EpisodeError, match="--camera: /image_raw, /wrist/image_raw"):
        Review(tmp_path, lambda: NOW_NS).episode("two")
    seen = Image.open(io.BytesIO(Review(tmp_path, lambda: NOW_NS, "wrist/image_raw").image("two", 0)))
    assert abs(int(np.asarray(seen).mean()) - 200) < 5


def test_raw_images_are_shown_too_and_an_empty_episode_says_so(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "raw", {}, START_NS, 0)
    pixels = np.full((48, 64, 3), (200, 100, 50), np.uint8)
    image = message_class(RAW_IMAGE)(header=header_of(START_NS, ""), height=48, width=64, encoding="rgb8",
                                     is_bigendian=0, step=192, data=pixels.ravel())
    writer.write("/image_raw", RAW_IMAGE, serialize(RAW_IMAGE, image), START_NS)
    review = Review(writer.close("done", START_NS + 1), lambda: NOW_NS)  # one episode by itself
    rgb = np.asarray(Image.open(io.BytesIO(review.image("raw", 0))))
    assert np.abs(rgb.astype(int) - pixels).max() < 6 and review.episode("raw")["steps"] == []
    EpisodeWriter(tmp_path, "blind", {}, START_NS, 0).close("done", START_NS + 1)
    with pytest.raises(EpisodeError, match="holds no images"):
        Review(tmp_path, lambda: NOW_NS).episode("blind")
    with pytest.raises(EpisodeError, match="not a folder"):
        Review(tmp_path / "nowhere", lambda: NOW_NS)


def test_the_judges_opinion_is_stored_beside_the_outcome(
    tmp_path: Path, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recorded, tmp_path / "episodes")
    mark_outcome(tmp_path / "episodes" / "a", "failure", "alice", None, NOW_NS)
    assert cli.main(["episodes", "judge", str(tmp_path / "episodes")]) == 0
    assert "reflector-tiny says" in capsys.readouterr().out
    for name, outcome in (("a", ("failure", "alice")), ("b", ("unknown", ""))):
        marked = read_outcome(tmp_path / "episodes" / name)
        assert (marked.outcome, marked.marked_by) == outcome
        (opinion,) = marked.judgements
        assert opinion["judge"] == "reflector-tiny" and 0 <= opinion["score"] <= 1
