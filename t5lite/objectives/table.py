"""The README's table of objectives × architectures, made from the code.

python -m t5lite.objectives.table
"""

from t5lite.objectives.catalogue import ARCHITECTURES, OBJECTIVES

T5, BART, BERT = "Raffel et al. 2020", "Lewis et al. 2020", "Devlin et al. 2019"
ABOUT = {
    "span_corruption": ("each span of noise → a sentinel; targets: the spans", T5),
    "iid_denoising": ("the same, but each token is noise independently", T5),
    "drop_tokens": ("noise is dropped; targets: the dropped tokens", T5),
    "bert_style": ("each noise token → one sentinel, a tenth → a random token; targets: the whole text", T5),
    "mass_style": ("each noise token → one sentinel; targets: the whole text", T5),
    "deshuffling": ("tokens in random order; targets: the text", T5),
    "prefix_lm": ("a prefix; targets: its continuation", T5),
    "text_infilling": (
        "each span of words (Poisson lengths) → one [MASK], also if the length is 0; spans overlap, so .3 becomes "
        "about .27",
        BART,
    ),
    "token_masking": ("noise → [MASK]; targets: the whole text", BART),
    "token_deletion": ("noise is dropped; targets: the whole text", BART),
    "sentence_permutation": ("sentences in random order; targets: the text", BART),
    "document_rotation": ("the text begins at a random token; targets: the text", BART),
    "bart": ("permutation and infilling, or any `objective.noises`", BART),
    "causal_lm": ("the next token; attention stays inside a document (`objective.segments`)", ""),
    "fill_in_the_middle": ("the same, but in half of the windows the middle stands at the end", "Bavarian et al. 2022"),
    "ul2": ("seven denoisers with mode tokens", "Tay et al. 2022a"),
    "ul2r": ("the four denoisers of the continued training", "Tay et al. 2022b"),
    "mixture": ("any of these by weight (`objective.mixture`)", ""),
    "mlm": ("some tokens → [MASK], a random token or unchanged; targets: these tokens, in their places", BERT),
    "mlm_nsp": ("the same, with two parts; also: does the second part follow the first?", BERT),
    "mlm_sop": ("the same; also: have the two parts changed places?", "Lan et al. 2020"),
    "supervised": ("(inputs, targets) pairs, packed (`objective.pack`); on an encoder, targets are labels", ""),
    "tagging": ("words; targets: a tag for each word", ""),
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
