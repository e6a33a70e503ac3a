"""The README's table of objectives × architectures, made from the code.

python -m t5lite.objectives.table
"""

from t5lite.objectives.catalogue import ARCHITECTURES, OBJECTIVES

T5, BART, BERT = "Raffel et al. 2020", "Lewis et al. 2020", "Devlin et al. 2019"
ABOUT = {
    "span_corruption": ("each span of noise → a sentinel; targets: the spans", T5),
    "iid_denoising": ("like `span_corruption`, but each token becomes noise independently of the others", T5),
    "drop_tokens": ("noise is dropped; targets: the dropped tokens", T5),
    "bert_style": ("each noise token → one sentinel, a tenth → a random token; targets: the whole text", T5),
    "mass_style": ("each noise token → one sentinel; targets: the whole text", T5),
    "deshuffling": ("tokens in random order; targets: the text", T5),
    "prefix_lm": ("a prefix; targets: its continuation", T5),
    "text_infilling": (
        "each span of words (Poisson lengths, 0 included) → one [MASK]; spans may overlap, so density .3 gives "
        "about .27",
        BART,
    ),
    "token_masking": ("noise → [MASK]; targets: the whole text", BART),
    "token_deletion": ("noise is dropped; targets: the whole text", BART),
    "sentence_permutation": ("sentences in random order; targets: the text", BART),
    "document_rotation": ("the text begins at a random token; targets: the text", BART),
    "bart": ("sentence permutation and text infilling, or any `objective.noises`", BART),
    "causal_lm": ("the next token; attention stays inside a document (`objective.segments`)", ""),
    "fill_in_the_middle": (
        "like `causal_lm`, but half of the windows have their middle part moved to the end",
        "Bavarian et al. 2022",
    ),
    "ul2": ("seven denoisers with mode tokens", "Tay et al. 2022a"),
    "ul2r": ("four denoisers with mode tokens, for continued training (UL2R)", "Tay et al. 2022b"),
    "mixture": ("a mixture of objectives, by weight (`objective.mixture`)", ""),
    "mlm": ("some tokens → [MASK] or a random token, or unchanged; targets: these tokens at the same positions", BERT),
    "mlm_nsp": ("like `mlm`, on two parts of text; it also predicts whether the second part follows the first", BERT),
    "mlm_sop": ("like `mlm`, on two parts of text; it also predicts whether the parts are swapped", "Lan et al. 2020"),
    "supervised": ("inputs with known answers: texts, labels, numbers, tags or spans (`objective.answer`)", ""),
    "tagging": ("`supervised` with `objective.answer=tags`", ""),
    "chat": ("conversations; targets: what the assistant says, with the token that closes it", ""),
}
SHORT = {"encoder_decoder": "encoder-decoder"}


def markdown_table() -> str:
    """Return the table in Markdown, with a line for each objective."""
    columns = [SHORT.get(name, name) for name in ARCHITECTURES]
    lines = [
        f"| `objective.name` | inputs; targets | source | {' | '.join(columns)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for name, kind in OBJECTIVES.items():
        about, source = ABOUT[name]
        cells = ["yes" if architecture in kind.architectures else "" for architecture in ARCHITECTURES]
        lines.append(f"| `{name}` | {about} | {source} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())
