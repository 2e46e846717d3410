"""`zerver check`, `routes` and `graph` look at an app without opening it."""

from __future__ import annotations

from pathlib import Path

from tests.cli.commands import BROKEN, SHOP, zerver


def test_check_says_what_it_has_checked(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "check", "shop:app", shop=SHOP)
    assert (ended.status, ended.out, ended.err) == (0, "shop:app: 3 routes, 3 flows: ok\n", "")


def test_check_shows_what_cannot_work_and_its_cure(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "check", "broken:app", broken=BROKEN)
    assert (ended.status, ended.out) == (1, "")
    problem, cure = ended.err.splitlines()
    assert problem.startswith("DefinitionError: route GET /items: parameter 'id' reads path parameter 'id'")
    assert cure == "  add {id} to the path"


def test_routes_is_a_table(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "routes", "shop:app", shop=SHOP)
    assert ended.status == 0
    assert ended.out.splitlines() == [
        "METHOD  PATH   FLOW   CLASS        DEADLINE",
        "GET     /      hello  interactive  1.5s",
        "POST    /buy   buy    default      -",
        "POST    /wait  wait   default      -",
    ]


def test_an_app_without_routes_has_an_empty_table(tmp_path: Path) -> None:
    assert zerver(tmp_path, "routes", "shop:other", shop=SHOP).out == "METHOD  PATH  FLOW  CLASS  DEADLINE\n"


def test_mounts_are_listed_behind_the_routes(tmp_path: Path) -> None:
    mounting = SHOP + "async def old(scope, receive, send): ...\napp.mount('/old', old)\nother.mount('/', old)\n"
    listed = zerver(tmp_path, "routes", "shop:app", shop=mounting).out.splitlines()
    assert listed[-1] == "*       /old/…  mount /old  default      -"
    assert zerver(tmp_path, "routes", "shop:other").out.splitlines()[1] == "*       /…    mount /  default  -"
    checked = zerver(tmp_path, "check", "shop:app")
    assert (checked.status, checked.out) == (0, "shop:app: 3 routes, 1 mount, 3 flows: ok\n")


def test_a_routes_own_class_is_the_one_that_counts(tmp_path: Path) -> None:
    own = SHOP + "app.route('PUT', '/', Flow('put', [hello]), priority='batch')\n"
    assert zerver(tmp_path, "routes", "shop:app", shop=own).out.splitlines()[-1].split() == [
        "PUT",
        "/",
        "put",
        "batch",
        "-",
    ]


def test_graph_draws_a_flow(tmp_path: Path) -> None:
    assert zerver(tmp_path, "graph", "shop:app", "buy", shop=SHOP).out.startswith("flowchart")
    assert zerver(tmp_path, "graph", "shop:app", "buy", "--format", "dot").out.startswith("digraph")


def test_graph_of_an_unknown_flow_names_those_there_are(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "graph", "shop:app", "sell", shop=SHOP)
    assert ended.status == 2
    assert ended.err == "Error: no route of the app serves a flow 'sell'; there are: buy, hello, wait\n"
