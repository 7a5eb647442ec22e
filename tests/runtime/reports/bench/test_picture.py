from __future__ import annotations

import hashlib

from PIL import Image

from divprune.runtime.reports.bench.picture import BUILT_IN, built_in_picture, image_facts


def test_the_built_in_picture_is_the_same_everywhere():
    picture = built_in_picture()
    assert (picture.mode, picture.size) == ("RGB", (640, 480))
    # Reports of different machines are compared by this hash.
    facts = image_facts(BUILT_IN, picture)
    assert facts.sha256 == "f8e745ddd0185eaedecfa2126c4ed09fcabd8ac21b6d1566042dec34940717ed"
    assert image_facts(BUILT_IN, built_in_picture()) == facts


def test_a_picture_is_identified_by_its_pixels():
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    facts = image_facts("a.png", picture)
    assert (facts.source, facts.width, facts.height) == ("a.png", 3, 2)
    assert facts.sha256 == hashlib.sha256(bytes((1, 2, 3)) * 6).hexdigest()
