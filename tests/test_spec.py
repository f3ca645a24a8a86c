"""What fixes a number: protocols and their variants."""

from __future__ import annotations

import pytest

from trilemma_bench.spec import load_protocol, protocol_names


@pytest.mark.parametrize("name", protocol_names())
def test_a_variant_says_its_own_count_in_name_and_title(name: str) -> None:
    protocol = load_protocol(name)
    variant = protocol.with_num_generated(2345)
    assert variant.name == f"{name}@n2345"
    assert f"{protocol.num_generated:,}" in protocol.title
    assert "2,345" in variant.title
    assert f"{protocol.num_generated:,}" not in variant.title
    assert protocol.with_num_generated(protocol.num_generated) is protocol
