"""UCE's mathematics against the paper's own formula, solved independently in numpy."""

import numpy as np
import pytest
import torch
from families import EVERY, build

import tiny
from erasers.erase import Task, concept, configure
from erasers.erase._tokens import pair, span
from erasers.erase.uce import UCE, directions
from erasers.pipelines import wrap
from erasers.prompts import Concept, InputError

CLOSED = [f for f in EVERY if f != "hidream"]


def paper(w, c, anchor, p, erase, keep, ridge):
    """W' of equation 7 as the paper writes it, float64 and a general solver."""
    w, c, anchor, p = (t.double().numpy() for t in (w, c, anchor, p))
    left = erase * w @ anchor @ c.T + keep * w @ p @ p.T + ridge * w
    right = erase * c @ c.T + keep * p @ p.T + ridge * np.eye(len(c))
    return np.linalg.solve(right.T, left.T).T


@pytest.mark.parametrize(("n", "m"), [(1, 0), (3, 10), (20, 5), (40, 60)])
@pytest.mark.parametrize(("erase", "keep", "ridge"), [(1.0, 1.0, 0.5), (3.0, 0.2, 0.01)])
def test_low_rank_form_is_the_papers_solution(n, m, erase, keep, ridge):
    g = torch.Generator().manual_seed(n + m)
    w, c, anchor, p = (torch.randn(s, generator=g) for s in ((24, 32), (32, n), (32, n), (32, m)))
    d, a = directions(c, anchor, p, scales=(erase, keep), ridge=ridge)
    assert a.shape[0] == d.shape[1] == min(n, 32)
    np.testing.assert_allclose((w + w @ d @ a).numpy(), paper(w, c, anchor, p, erase, keep, ridge), atol=2e-4)


def test_limits_of_the_closed_form():
    """No ridge and nothing to preserve: the edited state acts exactly like its anchor. A huge ridge: nothing moves."""
    g = torch.Generator().manual_seed(0)
    w, c, anchor = (torch.randn(s, generator=g) for s in ((8, 16), (16, 2), (16, 2)))
    d, a = directions(c, anchor, c[:, :0], scales=(1.0, 1.0), ridge=1e-9)
    torch.testing.assert_close((w + w @ d @ a) @ c, w @ anchor, atol=1e-4, rtol=1e-4)
    d, a = directions(c, anchor, c[:, :0], scales=(1.0, 1.0), ridge=1e9)
    assert (w @ d @ a).abs().max() < 1e-5


def test_preserved_states_move_less_when_preserved():
    g = torch.Generator().manual_seed(0)
    c, anchor, p = (torch.randn(32, k, generator=g) for k in (2, 2, 6))
    moved = []
    for keep in (0.0, 1.0, 100.0):
        d, a = directions(c, anchor, p, scales=(1.0, keep), ridge=0.5)
        moved.append((d @ a @ p).norm().item())
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.05 * moved[0]


def test_span_and_pair():
    text = torch.tensor([9, 1, 2, 3, 2, 3, 8])
    assert span(text, [[2, 3]]) == range(4, 6)
    assert span(text, [[7], [1, 2]]) == range(1, 3)
    with pytest.raises(InputError, match="separate word"):
        span(text, [[], [3, 1]])
    assert pair(range(2, 5), range(1, 3), (7, 5), "last") == [(4, 2)]
    assert pair(range(2, 5), range(1, 3), (7, 5), "subject") == [(2, 1), (3, 1), (4, 2)]
    assert pair(range(2, 5), range(1, 3), (7, 5), "all") == [(2, 1), (3, 1), (4, 2), (5, 3), (6, 4)]


@pytest.mark.parametrize("tokens", ["last", "subject"])
@pytest.mark.parametrize("anchor", ["a dog", ""])
@pytest.mark.parametrize("family", CLOSED)
def test_edited_prompt_reads_like_its_anchor(family, tokens, anchor):
    """With next to no ridge, keys and values at the concept's last token become the anchor's."""
    backbone = build(family)
    task = Task((Concept("van gogh", anchor, kind="style"),), (), 0)
    tool = UCE(tokens=tokens, ridge=1e-7, preserve_scale=0.0, pooled=False)
    factors = tool.run(backbone, task)
    assert set(factors) == set(backbone.modules("text-in"))
    for stream in backbone.text_states(["van gogh", anchor]):  # of each text encoder
        (ids, here), (others, there) = stream
        c = here[span(ids, stream.spell("van gogh"))[-1]]
        want = there[span(others, stream.spell(anchor))[-1]] if anchor else there[-1]
        for name, (a, b) in factors.items():
            w = backbone.modules("all")[name].weight
            torch.testing.assert_close(w @ c + b @ (a @ c), w @ want, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("family", CLOSED)
def test_all_tokens_moves_the_whole_sentence_as_near_its_anchors_as_a_linear_map_can(family):
    """With next to no ridge: the least-squares solution over all states from the name to the end of the padding."""
    backbone = build(family)
    factors = UCE(tokens="all", ridge=1e-7, preserve_scale=0.0, pooled=False).run(
        backbone, Task((Concept("moon", "star"),), (), 0)
    )
    rows = []
    for stream in backbone.text_states(["moon", "star"], padded=True):
        first = span(stream.ids[0], stream.spell("moon"))[0]
        rows.append(torch.cat([s[first:] for s in stream.states], 1))
    c, want = torch.cat(rows).unique(dim=0).detach().chunk(2, dim=1)
    best = torch.linalg.lstsq(c.double(), want.double()).solution.float()
    for name, (a, b) in factors.items():
        w = backbone.modules("all")[name].weight.detach()
        before, after = ((w @ (c - want).T).norm(), (w @ c.T + b @ (a @ c.T) - w @ want.T).norm())
        assert after < 0.6 * before
        assert abs(after - (w @ (c @ best - want).T).norm()) < 0.02 * before


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_pooled_path(family):
    backbone = build(family)
    task, layer = Task((Concept("moon", "star"),), (), 0), backbone.pooled
    factors = UCE(ridge=1e-7, preserve_scale=0.0).run(backbone, task)
    a, b = factors[layer]
    w = backbone.modules("all")[layer].weight
    c, want = (backbone.inputs(layer, backbone.encode([t]))[0] for t in ("moon", "star"))
    assert not torch.allclose(w @ c, w @ want, atol=1e-3)
    torch.testing.assert_close(w @ c + b @ (a @ c), w @ want, atol=2e-3, rtol=2e-3)
    assert layer not in UCE(pooled=False).run(backbone, task)


def test_several_concepts_at_once_and_synonyms():
    backbone = wrap(tiny.sd(), "sd")
    moon = Concept("moon", "star", synonyms=("ring",))
    one = UCE(synonyms=False).run(backbone, Task((moon,), (), 0))
    two = UCE().run(backbone, Task((moon,), (), 0))
    three = UCE().run(backbone, Task((moon, Concept("cat", "dog")), (), 0))
    assert [next(iter(f.values()))[0].shape[0] for f in (one, two, three)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": "first"}, "tokens: expected one of last, subject, all"),
        ({"erase_scale": 0.0}, "erase-scale: expected a number above 0"),
        ({"ridge": -1.0}, "ridge: expected a number above 0"),
        ({"ridge": float("nan")}, "ridge: expected a number above 0"),
        ({"preserve_scale": -0.1}, "preserve-scale: expected a number of at least 0"),
        ({"contexts": 0}, "contexts: expected at least 1"),
        ({"ridg": 1.0}, "did you mean 'ridge'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        configure("uce", "sd", settings)


def test_too_many_contexts(sd):
    with pytest.raises(InputError, match="contexts: expected at most 8"):
        UCE(contexts=9).run(sd, Task((concept("moon", sd),), (), 0))
