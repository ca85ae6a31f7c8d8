"""The documentation runs, and it covers every public name, command and option."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
FENCE = re.compile(r"^```python *(?P<info>[^\n]*)\n(?P<code>.*?)^```", re.M | re.S)


def fences(page: Path) -> list[str]:
    return [m["code"] for m in FENCE.finditer(page.read_text()) if "no-run" not in m["info"]]


@pytest.mark.parametrize("page", [p for p in PAGES if fences(p)], ids=lambda p: p.stem)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for number, code in enumerate(fences(page), 1):
        exec(compile(code, f"{page.name}, python fence {number}", "exec"), names)  # noqa: S102


@pytest.fixture(scope="module")
def everything() -> str:
    return "\n".join(page.read_text() for page in PAGES)


def test_every_public_name_is_documented(everything: str) -> None:
    import pellucid

    missing = [name for name in pellucid.__all__ if not re.search(rf"`{name}\b|\b{name}\(", everything)]
    assert not missing, f"no page mentions {missing}"


def test_every_command_and_option_is_documented() -> None:
    from typer.main import get_command

    from pellucid.cli import app

    page = (ROOT / "docs" / "commands.md").read_text()

    def walk(command, path: str) -> list[str]:
        if hasattr(command, "commands"):
            return [m for name, sub in command.commands.items() for m in walk(sub, f"{path} {name}")]
        missing = [] if f"## `{path.strip()}`" in page else [f"{path}: no heading"]
        section = page.split(f"## `{path.strip()}`")[-1].split("\n## ")[0]
        for option in command.params:
            names = [o for o in option.opts if o.startswith("--")]
            missing += [
                f"{path} {name}" for name in names if name not in ("--help",) and f"`{name}" not in section
            ]
        return missing

    assert walk(get_command(app), "pellucid") == []


def test_links_between_pages_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
