import pytest
import torch

from scfegan_ray import images, losses
from scfegan_ray.config import LossConfig, ModelConfig
from scfegan_ray.errors import ConfigError
from scfegan_ray.models.discriminator import Discriminator
from scfegan_ray.models.features import vgg_random
from scfegan_ray.models.generator import Generator

PUBLISHED = LossConfig()


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float32)


def image(rows):
    """One image whose three channels are equal: (1, 3, H, W)."""
    return tensor(rows).expand(1, 3, -1, -1)


def plane(rows):
    return tensor(rows)[None, None]


class Linear(torch.nn.Module):
    """Score grid (N, 2, 1, 1) whose gradient is known: scores are <weight, image> and 3 <weight, image>.

    Speaks as `Discriminator.forward` does.
    """

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, image, conditions, slope_at=None):
        score = (image * self.weight).sum(dim=(1, 2, 3))
        scores = torch.stack([score, 3 * score], dim=1)[..., None, None]
        return scores if slope_at is None else (scores, (4 * self.weight).expand_as(slope_at[0]))


@pytest.fixture(scope="module")
def features():
    return vgg_random()


@pytest.fixture
def batch():
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:10, 3:12] = 1
    return {
        "ground_truth": torch.rand(2, 3, 16, 16) * 2 - 1,
        "generated": torch.rand(2, 3, 16, 16) * 2 - 1,
        "mask": mask,
        "conditions": torch.rand(2, 5, 16, 16),
        "interpolation": torch.rand(2),
    }


# per_pixel


def test_per_pixel_by_hand():
    generated, ground_truth = image([[1.0, 0.0], [-0.5, 0.0]]), image([[0.0, 0.0], [0.5, 0.0]])
    mask = plane([[1, 1], [0, 0]])
    # Two of 4 pixels differ by 1: one in the hole (weight 6), one in the known region (weight 1).
    assert losses.per_pixel(generated, ground_truth, mask, 6.0).item() == pytest.approx((6 + 1) / 4)


def test_per_pixel_weighs_the_hole_and_not_the_known_region():
    zero, one = image([[0.0, 0.0]]), image([[1.0, 0.0]])
    assert losses.per_pixel(one, zero, plane([[1, 0]]), 6.0).item() == pytest.approx(3.0)
    assert losses.per_pixel(one, zero, plane([[0, 1]]), 6.0).item() == pytest.approx(0.5)


def test_per_pixel_does_not_let_signs_cancel():
    assert losses.per_pixel(image([[1.0, -1.0]]), image([[0.0, 0.0]]), plane([[0, 0]]), 6.0).item() == 1.0


# perceptual and style


def test_per_pixel_weighs_the_border_of_the_hole():
    # 64 pixels wide: a hole from the 10th column on; its first column is at the border, its second one near it.
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 10:] = 1.0
    zero = torch.zeros(1, 3, 64, 64)
    weights = []
    for column in (9, 10, 11, 12):
        one = zero.clone()
        one[..., column] = 1.0
        weights.append(64 * losses.per_pixel(one, zero, mask, 6.0, border=4.0).item())
    assert weights == pytest.approx([1.0, 6.0 + 4.0, 6.0 + 2.0, 6.0])
    assert losses.per_pixel(zero + 1, zero, torch.ones_like(mask), 6.0, border=4.0).item() == pytest.approx(6.0)


def test_perceptual_by_hand():
    x = [tensor([[[[1.0, -1.0]]]]), tensor([[[[2.0]], [[0.0]]]])]
    gt = [torch.zeros(1, 1, 1, 2), torch.zeros(1, 2, 1, 1)]
    assert losses.perceptual(x, gt).item() == pytest.approx(1.0 + 1.0)


def test_style_by_hand():
    # Channels (1, 2) and (3, 4): Gram [[5, 11], [11, 25]], N_q = 2 * 1 * 2 = 4, C_q^2 = 4.
    x = tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert losses.style(losses.gram([x]), losses.gram([torch.zeros_like(x)])).item() == pytest.approx(
        (5 + 11 + 11 + 25) / 4 / 4
    )


@pytest.mark.parametrize(
    ("loss", "shapes"), [(losses.perceptual, [(3, 4, 5), (5, 1, 2)]), (losses.style, [(3, 3), (5, 5)])]
)
def test_sets_of_images_are_compared_one_by_one(loss, shapes):
    both, gt = ([torch.rand(number, *shape) for shape in shapes] for number in (4, 2))
    alone = [loss([layer[at : at + 2] for layer in both], gt) for at in (0, 2)]
    torch.testing.assert_close(loss(both, gt), torch.cat(alone))
    assert not torch.equal(*alone)


def test_style_does_not_care_where_things_are():
    x = torch.rand(1, 3, 4, 4)
    assert losses.style(losses.gram([x]), losses.gram([x.flip(2, 3)])).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.perceptual([x], [x.flip(2, 3)]).item() > 0.1


def test_style_is_float32_under_autocast():
    torch.manual_seed(0)
    x, gt = torch.rand(1, 8, 32, 32), torch.rand(1, 8, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = losses.style(losses.gram([x]), losses.gram([gt]))
    assert half.dtype == torch.float32
    assert half.item() == losses.style(losses.gram([x]), losses.gram([gt])).item()


@pytest.mark.parametrize("sizes", [(8, 16)])
def test_features_terms_do_not_grow_with_the_image(sizes):
    small, large = ((torch.full((1, 4, s, s), 2.0), torch.full((1, 4, s, s), 1.0)) for s in sizes)
    for term in (losses.perceptual, losses.style):
        assert term([small[0]], [small[1]]).item() == pytest.approx(term([large[0]], [large[1]]).item())


# total variation


def test_total_variation_by_hand():
    # A hole of one pixel in the corner: the region is the 2x2 corner. It has two vertical pairs (|1-4|, |2-5|) and
    # two horizontal ones (|1-2|, |4-5|); nothing else counts.
    composite = image([[1.0, 2.0, 9.0], [4.0, 5.0, -9.0], [9.0, 0.0, 9.0]])
    mask = plane([[1, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert losses.total_variation(composite, mask).item() == pytest.approx((3 + 3) / 2 + (1 + 1) / 2)


def test_total_variation_crosses_the_holes_border():
    composite = image([[0.0, 0.0, 1.0, 1.0]])
    assert losses.total_variation(composite, plane([[0, 1, 0, 0]])).item() == pytest.approx(0.5)


def test_total_variation_is_a_mean_per_image():
    one = image([[0.0, 1.0, 0.0, 0.0]])
    both = torch.cat([one, torch.zeros_like(one)])
    # The second image has a much larger hole, and counts the same.
    mask = torch.cat([plane([[1, 0, 0, 0]]), plane([[1, 1, 1, 1]])])
    assert losses.total_variation(both, mask).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        # The hole alone: one vertical pair, |2 - 5|.
        ("hole", 3.0),
        # Dilated: the upper three rows.
        ("dilated_hole", (3 + 3 + 18 + 5 + 5 + 18) / 6 + (1 + 7 + 1 + 14 + 9 + 9) / 6),
        ("image", (3 + 3 + 18 + 5 + 5 + 18 + 9 + 0 + 9) / 9 + (1 + 7 + 1 + 14 + 9 + 9 + 0 + 0) / 8),
    ],
)
def test_total_variation_of_each_region_by_hand(region, expected):
    composite = image([[1.0, 2.0, 9.0], [4.0, 5.0, -9.0], [9.0, 0.0, 9.0], [0.0, 0.0, 0.0]])
    mask = plane([[0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert losses.total_variation(composite, mask, region).item() == pytest.approx(expected)


def test_total_variation_without_a_hole_is_zero_and_has_a_gradient():
    composite = torch.rand(1, 3, 4, 4, requires_grad=True)
    value = losses.total_variation(composite, torch.zeros(1, 1, 4, 4))
    value.backward()
    assert value.item() == 0.0
    assert composite.grad is not None
    assert torch.count_nonzero(composite.grad) == 0


# scores


def test_scores_by_hand():
    real, fake = tensor([[2.0], [4.0]])[..., None, None], tensor([[-1.0], [-3.0]])[..., None, None]
    assert losses.adversarial(fake).item() == 2.0
    # (1 - 3) + (1 - 2): beyond the margin a hinge loss would be 0, this one goes on.
    assert losses.score_gap(real.mean(), fake.mean()).item() == -3.0
    assert losses.real_score_penalty(real).item() == 10.0


def test_gradient_penalty_is_per_image_and_masked():
    gradient = torch.zeros(2, 3, 2, 2)
    gradient[0, 0, 0, 0], gradient[0, 1, 0, 1] = 3.0, 4.0  # norm 5 in the hole
    gradient[1, 2, 0, 0] = 1.0  # norm 1 in the hole
    gradient[:, :, 1] = 100.0  # known region
    mask = torch.zeros(2, 1, 2, 2)
    mask[:, :, 0] = 1
    assert losses.gradient_penalty(gradient, mask).item() == pytest.approx(((5 - 1) ** 2 + 0) / 2)


def test_gradient_penalty_of_no_gradient_is_finite():
    gradient = torch.zeros(1, 3, 2, 2, requires_grad=True)
    value = losses.gradient_penalty(gradient, torch.ones(1, 1, 2, 2))
    value.backward()
    assert value.item() == pytest.approx(1.0)
    assert gradient.grad is not None
    assert torch.isfinite(gradient.grad).all()


# generator_terms and their sum


def generator_terms(batch, features, config=PUBLISHED, **changes):
    arguments = {"fake_scores": torch.tensor([[[[2.0]]], [[[-1.0]]]]), **batch, **changes}
    return losses.generator_terms(
        arguments["generated"],
        images.composite(arguments["generated"], arguments["ground_truth"], arguments["mask"]),
        arguments["ground_truth"],
        arguments["mask"],
        features,
        arguments["fake_scores"],
        config,
        arguments.get("real_scores"),
    )


def generator_parts(batch, features, config=PUBLISHED, **changes):
    terms = generator_terms(batch, features, config, **changes)
    return losses.weighted_sum(terms), {name: term for name, (_, term) in terms.items()}


WEIGHTS = {
    "per_pixel": 1.0,
    "perceptual": 0.05,
    "style_generated": 120.0,
    "style_composite": 120.0,
    "total_variation": 0.1,
    "adversarial": 0.001,
}


def test_generator_loss_is_the_published_sum_of_its_parts(batch, features):
    total, parts = generator_parts(batch, features)
    assert parts.keys() == WEIGHTS.keys()
    assert total.item() == pytest.approx(sum(WEIGHTS[name] * parts[name].item() for name in parts), rel=1e-5)


def test_generator_terms_carry_their_weights_and_their_graph(batch, features):
    batch["generated"].requires_grad_(True)
    fake_scores = batch["generated"].mean(dim=(1, 2, 3), keepdim=True)
    terms = generator_terms(batch, features, fake_scores=fake_scores)
    assert {name: weight for name, (weight, _) in terms.items()} == WEIGHTS
    for name, (_, term) in terms.items():
        (gradient,) = torch.autograd.grad(term, batch["generated"], retain_graph=True)
        assert gradient.abs().max() > 0, name


def test_weights_by_the_parts_name():
    config = LossConfig(
        hole=9.0,
        perceptual=2.0,
        style=3.0,
        total_variation=4.0,
        adversarial=5.0,
        real_score_penalty=6.0,
        gradient_penalty=7.0,
    )
    assert losses.part_weights(config) == {
        "per_pixel": 1.0,  # the hole's weight is inside
        "perceptual": 2.0,
        "style_generated": 3.0,
        "style_composite": 3.0,
        "total_variation": 4.0,
        "adversarial": 5.0,
        "real_score_penalty": 6.0,
        "gradient_penalty": 7.0,
    }


def test_gradient_norms_by_hand():
    generated = torch.tensor([3.0, 4.0], requires_grad=True)
    scores = torch.ones(1, requires_grad=True)
    terms = {
        "square": (2.0, generated.square().sum()),
        "sum": (0.5, generated.sum()),
        "off": (0.0, generated.sum()),
        "constant": (7.0, scores.detach().sum()),
    }
    norms = losses.gradient_norms(terms, generated)
    # 2 * 2 * (3, 4) has norm 20, 0.5 * (1, 1) has the root of a half.
    expected = {"square": 20.0, "sum": 0.5**0.5, "off": 0.0, "constant": 0.0}
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(expected)
    losses.weighted_sum(terms).backward()  # the graphs are still there
    assert generated.grad is not None
    assert generated.grad.tolist() == [12.5, 16.5]


def test_caffes_scale_multiplies_what_features_see(batch, features):
    _, parts = generator_parts(batch, features)
    _, scaled = generator_parts(batch, features, LossConfig(feature_scale="caffe"))
    factors = {"perceptual": 57.375, "style_generated": 57.375**2, "style_composite": 57.375**2}
    for name, part in parts.items():
        assert scaled[name].item() == pytest.approx(factors.get(name, 1.0) * part.item(), rel=1e-4), name


@pytest.mark.parametrize("region", ["dilated_hole", "hole", "image"])
def test_configured_region_of_total_variation(batch, features, region):
    _, parts = generator_parts(batch, features, LossConfig(total_variation_region=region))
    composite = images.composite(batch["generated"], batch["ground_truth"], batch["mask"])
    others = {r: losses.total_variation(composite, batch["mask"], r).item() for r in ("dilated_hole", "hole", "image")}
    assert len(set(others.values())) == 3
    assert parts["total_variation"].item() == others[region]


def test_generator_parts_are_the_terms(batch, features):
    _, parts = generator_parts(batch, features)
    composite = images.composite(batch["generated"], batch["ground_truth"], batch["mask"])
    of_generated, of_composite, of_gt = (features(x) for x in (batch["generated"], composite, batch["ground_truth"]))
    expected = {
        "per_pixel": losses.per_pixel(batch["generated"], batch["ground_truth"], batch["mask"], 6.0),
        "perceptual": losses.perceptual(of_generated, of_gt) + losses.perceptual(of_composite, of_gt),
        "style_generated": losses.style(losses.gram(of_generated), losses.gram(of_gt)),
        "style_composite": losses.style(losses.gram(of_composite), losses.gram(of_gt)),
        "total_variation": losses.total_variation(composite, batch["mask"]),
        "adversarial": torch.tensor(-0.5),
    }
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_generator_parts_are_zero_at_identity_and_never_negative(batch, features):
    flat = torch.full_like(batch["ground_truth"], 0.3)
    _, parts = generator_parts(batch, features, generated=flat, ground_truth=flat)
    _, others = generator_parts(batch, features)
    for name in parts.keys() - {"adversarial"}:
        assert parts[name].item() == pytest.approx(0.0, abs=1e-6), name
        assert others[name].item() > 0, name


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_generator_weight_acts_on_its_own_part(batch, features, name):
    field = {"per_pixel": "hole", "style_generated": "style", "style_composite": "style"}.get(name, name)
    off = dict.fromkeys(("hole", "perceptual", "style", "total_variation", "adversarial"), 0.0)
    batch["generated"].requires_grad_(True)
    _, parts = generator_parts(batch, features)
    base, _ = generator_parts(batch, features, LossConfig(**off))
    only, _ = generator_parts(batch, features, LossConfig(**{**off, field: 2.0}))
    added = {
        "hole": 2.0 * ((batch["generated"] - batch["ground_truth"]).abs() * batch["mask"]).mean().item(),
        "style": 2.0 * (parts["style_generated"] + parts["style_composite"]).item(),
    }
    expected = added.get(field, 2.0 * parts[name].item())
    assert (only - base).item() == pytest.approx(expected, rel=1e-3)


def test_epsilon_term_in_the_generator_adds_its_value_and_no_gradient(batch, features):
    config = LossConfig(real_score_penalty_in="generator")
    with pytest.raises(ConfigError, match="real_scores"):
        generator_parts(batch, features, config)
    scores = torch.full((2, 1, 1, 1), 3.0, requires_grad=True)
    batch["generated"].requires_grad_(True)
    total, parts = generator_parts(batch, features, config, real_scores=scores)
    without, _ = generator_parts(batch, features)
    assert parts["real_score_penalty"].item() == 9.0
    assert (total - without).item() == pytest.approx(0.009, abs=1e-4)
    total.backward()
    assert scores.grad is None


def test_generator_step_trains_the_generator_alone(batch, features):
    generator = Generator(ModelConfig(base_channels=4, num_downsamples=2, dilations=(2,)))
    discriminator = Discriminator(ModelConfig(discriminator_base_channels=4, discriminator_num_layers=2))
    discriminator.requires_grad_(False)
    generated = generator(torch.rand(2, 9, 16, 16))
    composite = images.composite(generated, batch["ground_truth"], batch["mask"])
    fake_scores = discriminator(composite, batch["conditions"])
    only_adversarial = LossConfig(adversarial=1.0, hole=0.0, perceptual=0.0, style=0.0, total_variation=0.0)
    total, _ = generator_parts(batch, features, only_adversarial, generated=generated, fake_scores=fake_scores)
    total.backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    assert all(parameter.grad is None for parameter in discriminator.parameters())


# discriminator_loss


def discriminator_parts(discriminator, batch, config=PUBLISHED, **changes):
    composite = images.composite(batch["generated"], batch["ground_truth"], batch["mask"])
    arguments = {"composite": composite, **batch, **changes}
    return losses.discriminator_loss(
        discriminator,
        arguments["ground_truth"],
        arguments["composite"],
        arguments["conditions"],
        arguments["mask"],
        arguments["interpolation"],
        config,
    )


@pytest.mark.parametrize(("reduction", "factor"), [("mean", (1 + 3) / 2), ("root", (1 + 3) / 2**0.5), ("sum", 1 + 3)])
def test_gradient_penalty_of_a_linear_discriminator(batch, reduction, factor):
    weight = torch.randn(1, 3, 16, 16) * 0.1
    discriminator = Linear(weight)
    config = LossConfig(gradient_penalty_reduction=reduction)
    _, parts = discriminator_parts(discriminator, batch, config)
    norm = (factor * weight * batch["mask"][:1]).norm()
    assert parts["gradient_penalty"].item() == pytest.approx((norm.item() - 1) ** 2, rel=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "root", "sum"])
def test_gradient_penalty_matches_finite_differences(reduction):
    torch.manual_seed(1)
    discriminator = Discriminator(ModelConfig(discriminator_base_channels=2, discriminator_num_layers=2)).double()
    ground_truth, composite = torch.rand(2, 1, 3, 4, 4, dtype=torch.float64)
    conditions = torch.rand(1, 5, 4, 4, dtype=torch.float64)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., 1:3, 0:3] = 1
    position, step = 0.3, 1e-6
    between = composite + position * (ground_truth - composite)

    def score(x):
        scores = discriminator(x, conditions)
        count = {"mean": scores.numel(), "root": scores.numel() ** 0.5, "sum": 1}[reduction]
        return scores.sum().item() / count

    gradient = torch.zeros_like(between)
    for i in range(between.numel()):
        shift = torch.zeros_like(between)
        shift.view(-1)[i] = step
        gradient.view(-1)[i] = (score(between + shift) - score(between - shift)) / (2 * step)
    expected = ((gradient * mask).norm() - 1) ** 2
    _, parts = losses.discriminator_loss(
        discriminator,
        ground_truth,
        composite,
        conditions,
        mask,
        torch.tensor([position], dtype=torch.float64),
        LossConfig(gradient_penalty_reduction=reduction),
    )
    assert parts["gradient_penalty"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("position", "expected"), [(0.0, "composite"), (1.0, "ground_truth"), (0.25, None)])
def test_interpolation_goes_from_composite_to_ground_truth(batch, position, expected):
    seen = []
    linear = Linear(torch.ones(1, 3, 16, 16))

    def spy(image, conditions, slope_at):
        seen.append((image.detach().clone(), conditions, *slope_at))
        return linear(image, conditions, slope_at)

    discriminator_parts(spy, batch, interpolation=torch.full((2,), position))
    ((stacked, conditions, between, conditions_between),) = seen  # one forward only
    real, fake = stacked.chunk(2)
    assert torch.equal(real, batch["ground_truth"])
    assert torch.equal(conditions, torch.cat([batch["conditions"]] * 2))
    assert torch.equal(conditions_between, batch["conditions"])
    named = {"composite": fake, "ground_truth": real}
    wanted = named[expected] if expected else 0.75 * fake + 0.25 * real
    torch.testing.assert_close(between, wanted)


def test_discriminator_loss_is_the_published_sum_of_its_parts(batch):
    discriminator = Linear(torch.randn(1, 3, 16, 16))
    total, parts = discriminator_parts(discriminator, batch)
    real = discriminator(batch["ground_truth"], None)
    composite = images.composite(batch["generated"], batch["ground_truth"], batch["mask"])
    fake = discriminator(composite, None)
    assert parts["real_scores"].item() == pytest.approx(real.mean().item(), rel=1e-5, abs=1e-5)
    assert parts["fake_scores"].item() == pytest.approx(fake.mean().item(), rel=1e-5, abs=1e-5)
    assert parts["real_score_penalty"].item() == pytest.approx(real.square().mean().item(), rel=1e-5)
    expected = (
        2
        - parts["real_scores"]
        + parts["fake_scores"]
        + 10.0 * parts["gradient_penalty"]
        + 0.001 * parts["real_score_penalty"]
    )
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(not part.requires_grad for part in parts.values())


def test_epsilon_term_as_printed_leaves_the_discriminator(batch):
    discriminator = Linear(torch.randn(1, 3, 16, 16))
    here, parts = discriminator_parts(discriminator, batch)
    there, without = discriminator_parts(discriminator, batch, LossConfig(real_score_penalty_in="generator"))
    assert "real_score_penalty" not in without
    assert (here - there).item() == pytest.approx(0.001 * parts["real_score_penalty"].item(), rel=0.1)


def test_discriminator_step_trains_the_discriminator_alone(batch):
    discriminator = Discriminator(ModelConfig(discriminator_base_channels=4, discriminator_num_layers=2))
    generator = Generator(ModelConfig(base_channels=4, num_downsamples=2, dilations=(2,)))
    generated = generator(torch.rand(2, 9, 16, 16))
    total, _ = discriminator_parts(discriminator, {**batch, "generated": generated})
    total.backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_gradient_penalty_trains_the_discriminator(batch):
    discriminator = Linear(torch.full((1, 3, 16, 16), 0.5))
    norms = []
    for _ in range(2):
        total, parts = discriminator_parts(discriminator, batch, LossConfig(gradient_penalty=1e3))
        total.backward()
        with torch.no_grad():
            discriminator.weight -= 1e-5 * discriminator.weight.grad
            discriminator.weight.grad = None
        norms.append(parts["gradient_penalty"].item())
    assert norms[1] < norms[0]


def test_losses_survive_autocast(batch, features):
    discriminator = Discriminator(ModelConfig(discriminator_base_channels=4, discriminator_num_layers=2))
    batch["generated"].requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        d_total, _ = discriminator_parts(discriminator, batch)
        composite = images.composite(batch["generated"], batch["ground_truth"], batch["mask"])
        scores = discriminator(composite, batch["conditions"])
        g_total, parts = generator_parts(batch, features, fake_scores=scores)
    _, exact = generator_parts(batch, features, fake_scores=scores)
    (d_total + g_total).backward()
    assert d_total.dtype == g_total.dtype == torch.float32
    for name, part in parts.items():
        assert part.item() == pytest.approx(exact[name].item(), rel=0.1), name
    assert torch.isfinite(batch["generated"].grad).all()
