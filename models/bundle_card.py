"""The model card of a bundle: what its README.md says, to people and to the Hugging Face hub."""

from models.bundle_facts import BundleConfig, TrainingFacts, needed

CARD = "README.md"
UNKNOWN = "not known here: ask whoever trained it"

_FRONT = """---
library_name: latent-pmrf
pipeline_tag: image-to-image
license: other
license_name: by-part
license_link: README.md
tags:
- face-restoration
- rectified-flow
---
"""
_FRAMED = {
    "ffhq": "Faces have to be framed as FFHQ frames them; `--whole` finds, frames and puts back "
    "the faces of a photograph.",
    "any": "It was trained on pictures that show a face in any way, so that nothing is aligned.",
}
_LIMITS = """\
## What it cannot do

It invents what a degraded picture does not show. A restored face is one of many that the picture
could be of; it is no evidence of who a person is, or of what they looked like. The posterior mean
(`--method posterior-mean`) and the spread of several restorations (`--samples`) show what the
picture itself says. It has learnt from the faces of its training data and from the degradations
that were simulated there: other faces, scenes without faces, and other damage, such as scratches
and folds, are restored worse, or not at all.
"""


def model_card(config: BundleConfig) -> str:
    """Write the card in Markdown, with the front matter that the hub reads.

    Every number in it is one of ``config``.
    """
    about = config.training.about.strip()
    sections = [_what(config), about and f"{about}\n", _use(config), _LIMITS]
    sections += [_training(config.training)]
    sections += [_validation(config), _licences(config)]
    return _FRONT + "\n" + "\n".join(filter(None, sections))


def _what(config: BundleConfig) -> str:
    names = {"latent-pmrf": "Latent-PMRF", "pmrf": "PMRF"}
    space = "the latent space of an autoencoder" if config.rule.space == "latent" else "pixels"
    return (
        f"# {names[config.method]}, a restorer of faces\n\n"
        f"A rectified flow in {space} that leads from what a degraded picture shows for certain "
        "(the posterior mean) to a sharp face. It works on pictures of "
        f"{config.size} x {config.size} pixels. {_FRAMED[config.alignment]}\n\n"
        f"Digest: `{config.digest}`. The weights are stored in {config.dtype}.\n"
    )


def _use(config: BundleConfig) -> str:
    return (
        "## Use\n\n"
        "    python -m pipelines.restore -i PHOTOGRAPHS -o RESTORED --model THIS_FOLDER\n\n"
        f"Without other options it takes {config.steps} steps of the solver {config.solver}"
        f"{_noise(config)}.\n"
    )


def _noise(config: BundleConfig) -> str:
    """Say what noise the flow begins with, unless noise is all that it begins with."""
    if config.rule.source == "noise":
        return ""
    sigma_s = config.rule.sigma_s
    return f", from a source with noise of {sigma_s:g}" if sigma_s else ", without noise"


def _training(facts: TrainingFacts) -> str:
    told = {
        "Steps": _of(facts.step, facts.max_steps),
        "Samples of a step": _number(facts.batch),
        "Floating-point operations, counted": "" if facts.flops is None else f"{facts.flops:.3e}",
        "LQ is made by": ", ".join(
            f"{name} {_range(value)}" for name, value in facts.degradation.items()
        ),
        "Began from": "; ".join(
            f"{name}: {', '.join(f'{key} {value}' for key, value in fact.items())}"
            for name, fact in facts.origin.items()
        ),
        "Programs": ", ".join(f"{name} {value}" for name, value in facts.versions.items()),
    }
    rows = [f"| {name} | {value} |" for name, value in told.items() if value]
    rows += [f"| Data | {name}, SHA-256 `{sha256}` |" for name, sha256 in facts.data.items()]
    return "## Training\n\n" + _table("| | |", rows) if rows else ""


def _range(value: object) -> str:
    """Write a parameter of the degradation: two ends, a list of values, or one value."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    return (" to " if len(value) == 2 else ", ").join(f"{one:.4g}" for one in value)


def _validation(config: BundleConfig) -> str:
    facts = config.training
    rows = [f"| {name} | {value:.4g} |" for name, value in facts.validation.items()]
    if not rows:
        return ""
    over = "held-out samples" if facts.held_out is None else f"{facts.held_out} held-out pictures"
    return (
        f"## Validation\n\nMeans over {over} of {config.size} x {config.size} pixels, at step "
        f"{facts.step}. Names without a suffix are of the restored picture; `_lq`, "
        "`_posterior_mean`, `_reconstruction` and `_hq` say what else was judged.\n\n"
        + _table("| Metric | Mean |", rows)
    )


def _licences(config: BundleConfig) -> str:
    facts = config.training
    rows = [
        f"| {name} | {facts.networks.get(name, 'trained as said above')} | "
        f"{facts.licences.get(name, UNKNOWN)} |"
        for name in config.parts or needed(config.rule)
    ]
    return (
        "## Licences\n\nEach part has its own, and the strictest of them binds the whole.\n\n"
        + _table("| Part | From | Licence |", rows)
    )


def _table(head: str, rows: list[str]) -> str:
    line = "|" + " --- |" * (head.count("|") - 1)
    return "\n".join([head, line, *rows]) + "\n"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _of(value: int | None, whole: int | None) -> str:
    return _number(value) if whole is None else f"{_number(value)} of {_number(whole)}"
