#!/bin/sh
# Build the wheel, install it beside (not over) the checkout's packages, and run it from another folder: what is
# missing from the wheel (templates, style sheets, py.typed) shows here and nowhere else.
set -eu
venv=$(cd "${VENV:-.venv}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$venv/bin/python" -m build --wheel --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$venv/bin/python" -m venv "$work/venv"
site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# A plain path line adds the packages of the other environment without its editable install of pellucid.
"$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' >"$site/shared_packages.pth"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$work"/dist/*.whl
cd "$work"
"$work/venv/bin/python" - <<'PY'
import pathlib, pellucid
here = pathlib.Path(pellucid.__file__).parent
assert "site-packages" in str(here), here
assert (here / "py.typed").is_file(), "py.typed is not in the wheel"
print("pellucid", pellucid.__version__, "from", here)
PY
"$work/venv/bin/pellucid" demo --out "$work/run" --epochs 1
test -s "$work/run/index.html"
echo "wheel ok"
