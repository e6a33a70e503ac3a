"""The README's table of objectives × architectures, made from the code.

python -m t5lite.objectives.table
"""

from t5lite.objectives.catalogue import ARCHITECTURES, OBJECTIVES

T5, BART, BERT = "Raffel et al. 2020", "Lewis et al. 2020", "Devlin et al. 2019"
ABOUT = {
    "span_corruption": ("spans of noise → a sentinel each; targets: the spans", T5),
    "iid_denoising": ("the same, each token noise on its own", T5),
    "drop_tokens": ("noise dropped; targets: what was dropped", T5),
    "bert_style": ("noise → one sentinel, a tenth random; targets: the whole text", T5),
    "mass_style": ("noise → one sentinel; targets: the whole text", T5),
    "deshuffling": ("tokens in random order; targets: the text", T5),
    "prefix_lm": ("a prefix; targets: how it goes on", T5),
    "text_infilling": (
        "spans of words, of Poisson lengths, → one [MASK] each, also where the length is 0; as they overlap, .3 comes "
        "to about .27",
        BART,
    ),
    "token_masking": ("noise → [MASK]; targets: the whole text", BART),
    "token_deletion": ("noise dropped; targets: the whole text", BART),
    "sentence_permutation": ("sentences in random order; targets: the text", BART),
    "document_rotation": ("begins at a random token; targets: the text", BART),
    "bart": ("permutation and infilling, or any `objective.noises`", BART),
    "causal_lm": ("the next token; documents kept apart (`objective.segments`)", ""),
    "fill_in_the_middle": ("the same, in half of the windows with the middle moved to the end", "Bavarian et al. 2022"),
    "ul2": ("seven denoisers with mode tokens", "Tay et al. 2022a"),
    "ul2r": ("the four of the continued training", "Tay et al. 2022b"),
    "mixture": ("any of these by weight (`objective.mixture`)", ""),
    "mlm": ("some tokens → [MASK], random or kept; targets: those, in their places", BERT),
    "mlm_nsp": ("the same in two parts; and: is the second how the first goes on?", BERT),
    "mlm_sop": ("the same; and: have the parts changed places?", "Lan et al. 2020"),
    "supervised": ("(inputs, targets) pairs, packed (`objective.pack`); on an encoder targets are labels", ""),
    "tagging": ("words; targets: a tag for each", ""),
}
SHORT = {"encoder_decoder": "encoder-decoder"}


def markdown_table() -> str:
    """Return the Markdown table, a line for each objective."""
    heads = [SHORT.get(name, name) for name in ARCHITECTURES]
    lines = [f"| `objective.name` | inputs; targets | source | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for name, kind in OBJECTIVES.items():
        about, source = ABOUT[name]
        cells = ["yes" if architecture in kind.architectures else "" for architecture in ARCHITECTURES]
        lines.append(f"| `{name}` | {about} | {source} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())
