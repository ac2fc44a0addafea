"""The doctor looks at a machine that is ill, and says so."""

import sys

from histoscribe.app.doctor import examine_installation


def test_a_broken_torchvision_without_a_version_is_a_finding(tmp_path, monkeypatch):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (finding,) = (f for f in examine_installation(tmp_path) if f.what == "torchvision")
    assert finding.verdict == "bad"
    assert "pip uninstall torchvision" in finding.text
