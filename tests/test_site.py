"""The documentation as a site: every link and anchor leads somewhere, and nothing is fetched."""

import os
import subprocess
import sys

NOWHERE = "http://127.0.0.1:9"  # a port where nothing answers


def test_the_site_is_built_without_a_warning_or_the_network(in_repository, tmp_path):
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"],
        env=os.environ | proxies,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'href="results.html"' in (tmp_path / "studies.html").read_text()
    assert 'href="tasks.html#adding-a-task"' in (tmp_path / "contributing.html").read_text()
    assert "load_encoder" in (tmp_path / "reference.html").read_text()
    assert (tmp_path / "notebooks" / "pytorch.ipynb").exists()
    page = (tmp_path / "index.html").read_text()
    assert "fonts.googleapis" not in page
