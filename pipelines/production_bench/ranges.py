"""Reading a small box over HTTP: requests and bytes, against a COG of int8 embeddings."""

import getpass
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from rasterio.windows import Window

import nec

# Edge of the box: 256 pixels are 64 tokens.
BOX = 64

# Requests of the access log, whoever wrote it: method, status and bytes.
_LINE = re.compile(r'"(GET|HEAD) (\S+) HTTP/[\d.]+" (\d+) (\d+|-)')

_NGINX = """
{user} worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""
# aiohttp serves files by range; bodies by their stated length, as nginx logs them.
_AIOHTTP = """
import logging, sys
from aiohttp import web
logging.basicConfig(filename=sys.argv[3], format="%(message)s", level=logging.INFO)
app = web.Application()
app.router.add_static("/", sys.argv[1])
format = '"%r" %s %{Content-Length}o'
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), access_log_format=format, print=None)
"""


@contextmanager
def served(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Serve a folder: by nginx where it is installed, else by aiohttp.

    Yields
    ------
    tuple of str, Path and str
        URL, access log, and which server it is.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log = folder / "access.log"
        if nginx := shutil.which("nginx"):
            config = folder / "nginx.conf"
            # Started by root, its workers would be nobody, who may read no private folder.
            user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
            config.write_text(
                _NGINX.format(folder=folder, port=port, root=root.absolute(), user=user)
            )
            line, server = [nginx, "-c", str(config)], "nginx"
        else:
            line = [sys.executable, "-c", _AIOHTTP, str(root.absolute()), str(port), str(log)]
            server = f"aiohttp {version('aiohttp')} (nginx is not installed)"
        process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
        try:
            _wait_for(port, process)
            yield f"http://127.0.0.1:{port}", log, server
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError("the server ended at once")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("the server does not answer")


def traffic_of(log: Path, read: Any) -> tuple[Any, dict[str, int]]:
    """Call `read`; return what it returns, and requests and bytes by the server's own log."""
    time.sleep(0.2)  # what came before is in the log
    before = len(log.read_text().splitlines()) if log.exists() else 0
    answer = read()
    time.sleep(0.2)
    lines = log.read_text().splitlines()[before:]
    total: Counter[str] = Counter()
    for line in lines:
        if (match := _LINE.search(line)) is None:
            continue
        method, _, status, size = match.groups()
        total["requests"] += 1
        total["not_found"] += status == "404"
        if method == "GET" and size != "-" and status in ("200", "206"):
            total["bytes"] += int(size)
    return answer, {key: total[key] for key in ("requests", "bytes", "not_found")}


def int8_cog(store: Path, path: Path) -> Path:
    """Write a store's embedding as a COG of int8: every band over its largest magnitude."""
    embedding = nec.open(store)["embedding"]
    embedding = embedding.isel(time=0) if "time" in embedding.dims else embedding
    values = embedding.to_numpy()
    largest = np.nanmax(np.abs(values), axis=(1, 2), keepdims=True)
    scale = np.where(largest > 0, largest, 1)  # a component may be coded to nothing
    codes = np.nan_to_num(np.rint(values / scale * 127), nan=-128).astype(np.int8)
    dx = float(embedding.x[1] - embedding.x[0])
    transform = rasterio.Affine(
        dx, 0, float(embedding.x[0]) - dx / 2, 0, -dx, float(embedding.y[0]) + dx / 2
    )
    with rasterio.open(
        path,
        "w",
        driver="COG",
        count=len(codes),
        height=codes.shape[1],
        width=codes.shape[2],
        dtype="int8",
        crs=nec.open(store)["spatial_ref"].attrs["crs_wkt"],
        transform=transform,
        nodata=-128,
        compress="deflate",
        blocksize=256,
        interleave="pixel",
        overviews="none",
    ) as file:
        file.write(codes)
    return path


def bench_ranges(store: Path, work: Path, *, repeats: int) -> dict[str, Any]:
    """Read a box of 64 x 64 tokens (256 x 256 pixels) of a sealed store, and of a COG."""
    cog = int8_cog(store, work / "int8.tif")
    mask = nec.open(store)["embedding"].isel(band=0).notnull().to_numpy().reshape(-1)
    shape = nec.open(store)["embedding"].shape[-2:]
    rows, columns = np.nonzero(mask.reshape(shape))
    # In the middle of what is valid.
    row, column = (max(int(np.median(axis)) - BOX // 2, 0) for axis in (rows, columns))
    box = {"y": slice(row, row + BOX), "x": slice(column, column + BOX)}
    with served(work) as (url, log, server):
        remote = f"{url}/{store.relative_to(work)}"
        readers = {
            "xarray": lambda: xr.open_zarr(remote)["embedding"].isel(box).to_numpy(),
            "nec.open": lambda: nec.open(remote)["embedding"].isel(box).to_numpy(),
            "nec.open, 16 bands": lambda: (
                nec.open(remote, bands=16)["embedding"].isel(box).to_numpy()
            ),
            "int8 COG, GDAL": lambda: _read_cog(f"/vsicurl/{url}/{cog.name}", row, column),
        }
        rows_: dict[str, dict[str, Any]] = {}
        for name, read in readers.items():
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                values, traffic = traffic_of(log, read)
                seconds.append(time.perf_counter() - start - 0.4)
            rows_[name] = {**traffic, "seconds": round(statistics.median(seconds), 4)}
            assert np.isfinite(values).any()
    size = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    return {
        "server": server,
        "box_tokens": BOX,
        "store_bytes": size,
        "cog_bytes": cog.stat().st_size,
        "rows": rows_,
    }


def _read_cog(path: str, row: int, column: int) -> np.ndarray:
    # Nothing kept from the reading before; no listing of the folder.
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "CPL_VSIL_CURL_NON_CACHED": path}
    with rasterio.Env(VSI_CACHE=False, **options), rasterio.open(path) as file:
        return file.read(window=Window(column, row, BOX, BOX)).astype(np.float32)
