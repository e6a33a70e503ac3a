r"""Generate: print a model's answers to texts, or the probabilities of given answers.

    python -m t5lite.generate --checkpoint runs/tiny --input 'The <extra_id_0> sat on the mat.'
    python -m t5lite.generate --checkpoint hf:downloads/flan-t5 --input 'Translate to German: the cat' --num_beams 4
    python -m t5lite.generate --checkpoint runs/tiny_lm --input 'Return the' --temperature 0.8 --stop '\n\n'
    python -m t5lite.generate --checkpoint runs/task --input_file questions.jsonl --json > answers.jsonl
    python -m t5lite.generate --checkpoint runs/task --score --input 'the sea' --target 'a noun' --json
    python -m t5lite.generate --checkpoint runs/task --input 'a great film' --choices positive --choices negative
    python -m t5lite.generate --checkpoint runs/tiny --interactive
    python -m t5lite.generate --checkpoint runs/chat --input_file conversations.jsonl

The model is a run, or released weights in the local folder DIR (hf:DIR). The texts come from --input, from --input_file
or from standard input, one text on each line. In a .jsonl file (or with --jsonl) each line is an object with the fields
inputs, targets, prefix and choices. The answer keeps all other fields.

Each answer is one line, in the order of the texts. Line breaks in an answer are printed as \n. Blank lines get no
answer. If a line cannot be answered, an error on standard error names it, the other lines are answered, and the exit
code is 2. With --strict, generate ends at the first such line.

A model for chat answers a text as a message of the user, after the history with --interactive. In a .jsonl, a line may
have messages, or prompt and completion: the model answers the last message, and --score scores what the assistant says
last. A model that was fine-tuned on pairs answers. A model that was pre-trained with span corruption fills in the
blanks. A language model continues the text. An encoder replaces each [MASK] by the most likely piece, or prints the
label of a text, or the tag of each word. On a terminal, a single answer appears while it is generated.

With --choices or --choices_file, or a list "choices" in a line of .jsonl, the model writes nothing. It prints the score
of each given answer, the best first. Texts are read once, also if there are many answers.

Special tokens are generated only if training had them in targets. Sentinels are generated only if the text has a blank.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5lite import cli
from t5lite.checks import LENGTH, STEPS, in_range
from t5lite.data.chat.messages import ASSISTANT, USER
from t5lite.data.columns import Columns
from t5lite.data.tokenizers.generation_config import describe_ignored
from t5lite.decoding.score import SCORE_BY
from t5lite.decoding.settings import EARLY_STOPPING, MAX_NGRAM, Settings
from t5lite.run.answering import BATCH_SIZE, Answerer
from t5lite.run.answers import ChatGenerator, Generator, Options, Request, open_answerer
from t5lite.run.requests import read_choices, read_choices_file, read_requests, shorten
from t5lite.system import hosts
from t5lite.system.errors import UserError
from t5lite.system.progress import say, warn

BLANK = re.compile(r" ?<extra_id_\d+>")
NEW = "/new"
MAX_LEAKS = 5  # a warning lists at most this many names


def fill_blanks(text: str, answer: str) -> str:
    """Return `text` with its blanks filled. In `answer`, each sentinel stands before the words for its blank."""
    names = BLANK.findall(answer)
    parts = dict(zip((name.strip() for name in names), BLANK.split(answer)[1:], strict=True))
    return BLANK.sub(lambda blank: parts.get(blank[0].strip(), blank[0]), text)


def _read_requests(arguments: argparse.Namespace, columns: Columns, is_chat: bool) -> list[Request]:
    """Return the requests, in the order of the texts. is_chat: whether the model answers in conversations."""
    if arguments.input is not None:
        try:
            arguments.input.encode()  # fails if the argument has bytes that are not UTF-8
        except UnicodeError as error:
            raise UserError(f"cannot read --input: {error}; give a text in UTF-8") from error
        requests = [Request(arguments.input)]
    else:
        file = arguments.input_file
        is_json = arguments.jsonl or (file is not None and file.name.removesuffix(".gz").endswith(".jsonl"))
        requests = read_requests(file, is_json, columns, arguments.score, is_chat)
    flags = {name: value for name, value in (("prefix", arguments.prefix), ("target", arguments.target)) if value}
    return [dataclasses.replace(request, **flags) for request in requests]


def _format_lines(answer: Mapping[str, Any], arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the lines to print for an answer. Only an answer to --input may have several lines."""
    if arguments.json:
        yield json.dumps(answer)
    elif arguments.score:
        yield f"{answer['logprob']:.6f}"
    elif "answers" in answer:
        for each in answer["answers"]:
            yield f"{each['score']:.4f}\t" + each["output"].replace("\n", "\\n")
    else:
        yield answer["output"] if arguments.input is not None else answer["output"].replace("\n", "\\n")


def _warn_if_cut(request: Request, cut: Mapping[str, int] | None) -> None:
    if cut:
        where = request.place or f"the text {shorten(request.input)!r}"
        count = cut.get("messages")
        lost = f"the oldest {count} messages were left out" if count else "the rest was cut off"
        warn(f"{where}: has {cut['tokens']} tokens, but the network reads {cut['read']}: {lost}")


def _warn_of_leaks(leaky: int, answers: int, leaks: Sequence[str]) -> None:
    """Say how many answers hold tokens that are not text. leaks: the names of such tokens."""
    if leaky:
        names = ", ".join(map(repr, leaks[:MAX_LEAKS])) + (", …" if len(leaks) > MAX_LEAKS else "")
        warn(f"{leaky} of {answers} answers hold tokens that are not text ({names}), although the text has no blank; "
             "the model may not be trained to answer")  # fmt: skip


def _stream(generator: Generator, request: Request, options: Options) -> str:
    """Print the answer while it is generated, and return it."""
    answer = ""
    _warn_if_cut(request, generator.prepare(request, options).cut)
    for part in generator.stream(request, options):
        print(part, end="", flush=True)
        answer += part
    print()
    _warn_of_leaks(int(bool(leaks := generator.find_leaks(request, answer))), 1, leaks)
    return answer


def _read_lines() -> Iterator[str]:
    """Yield each line that is typed."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def _converse_in_turns(generator: ChatGenerator, options: Options) -> None:
    """Answer each line that is typed, as a message of the user in one conversation."""
    print(f"type a line to get an answer; {NEW} starts a new conversation; Ctrl-D ends", file=sys.stderr)
    messages: list[dict[str, str]] = []
    for line in _read_lines():
        if not line.strip() or line.strip() == NEW:
            messages = messages if not line.strip() else []
            continue
        asked = [*messages, {"role": USER, "content": line}]
        try:
            answer = _stream(generator, Request(line, messages=asked), options)
            messages = [*asked, {"role": ASSISTANT, "content": answer}]
        except UserError as error:  # the message is dropped, and the next one may be shorter
            print(f"t5lite: {error}", file=sys.stderr)


def _converse(answerer: Answerer, options: Options) -> None:
    """Answer each line that is typed. A language model continues the whole conversation."""
    if isinstance(answerer, ChatGenerator):
        _converse_in_turns(answerer, options)
        return
    continues = not answerer.objective.closes_inputs and answerer.objective.architecture == "decoder"
    hint = f"; {NEW} starts a new conversation" if continues else ""
    print(f"type a line to get an answer{hint}; Ctrl-D ends", file=sys.stderr)
    conversation = ""
    for line in _read_lines():
        if line.strip() == NEW or not line.strip():
            conversation = "" if line.strip() else conversation
            continue
        conversation = f"{conversation}\n{line}" if continues and conversation else line
        try:
            if isinstance(answerer, Generator) and not BLANK.search(line):
                conversation += _stream(answerer, Request(conversation), options)
                continue
            answer = next(answerer.answers([Request(line)], options))
            _warn_if_cut(Request(line), answer.get("cut"))
            print(fill_blanks(line, answer["output"]) if isinstance(answerer, Generator) else answer["output"])
        except UserError as error:  # for example, the text is too long; the next line may be shorter
            print(f"t5lite: {error}", file=sys.stderr)
            conversation = ""


def _add_settings(parser: argparse.ArgumentParser) -> None:
    defaults, count = Settings(), in_range(int, 0, STEPS)
    number = lambda smallest, largest: in_range(float, smallest, largest)
    for name, kind, text in (
        ("max_new_tokens", in_range(int, 1, LENGTH), "an answer has at most this many tokens"),
        ("min_new_tokens", in_range(int, 0, LENGTH), "an answer has at least this many tokens"),
        ("no_repeat_ngram_size", in_range(int, 0, MAX_NGRAM), "n: no n tokens in a row occur twice; 0: off"),
        ("temperature", number(0, 1e6), "0: always take the most likely token"),
        ("top_k", count, "sample from the k most likely tokens; 0: from all tokens"),
        ("top_p", number(0, 1), "sample from the most likely tokens that together have this probability"),
        ("min_p", number(0, 1), "sample from tokens with at least this fraction of the largest probability"),
        ("repetition_penalty", number(0, 1e6), "above 1: tokens that have already occurred become less likely"),
        ("num_beams", in_range(int, 1, 2**10), "the number of beams; 1: no beam search"),
        ("length_penalty", number(-1e6, 1e6), "exponent x: a beam's score is its log-probability / length ** x"),
        ("num_return", in_range(int, 1, 2**10), "the number of answers to each text, best first"),
    ):
        default = getattr(defaults, name)
        default = "that of a release's generation_config.json, else 0" if default is None else default
        parser.add_argument(f"--{name}", type=kind, help=f"{text} (default: {default})")
    known = {str(value).lower(): value for value in EARLY_STOPPING}
    parser.add_argument(
        "--early_stopping",
        type=lambda text: known.get(text.lower(), text),
        help="when a beam search ends: true, false or never (default: false)",
    )


def _settings_from_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line sets."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)}
    return {name: value for name, value in values.items() if value is not None}


def _make_options(arguments: argparse.Namespace) -> Options:
    stop = tuple(text.replace("\\n", "\n") for text in arguments.stop or ())
    settings = Settings(**_settings_from_flags(arguments))
    if settings.num_beams > 1 and stop:
        raise UserError(
            "--stop cannot be combined with --num_beams, because beams change during the search; leave one out"
        )
    if "" in stop:
        raise UserError("--stop: an empty text would end every answer at once; give a text that is not empty")
    choices: tuple[str, ...] = ()
    if arguments.choices is not None:
        choices = read_choices(arguments.choices, "--choices")
    elif arguments.choices_file is not None:
        choices = read_choices_file(arguments.choices_file)
    score_by = arguments.score_by or Options().score_by
    return Options(settings, stop, tuple(arguments.suppress or ()), arguments.seed, choices, score_by)


def _make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("generate", __doc__)
    cli.add_checkpoint(parser)
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--input", help="one text")
    texts.add_argument("--input_file", type=Path, help="a file with one text on each line; default: standard input")
    texts.add_argument("--interactive", action="store_true", help="answer each line that is typed")
    parser.add_argument("--strict", action="store_true", help="end at the first line that cannot be answered")
    parser.add_argument(
        "--jsonl", action="store_true", help="read standard input, or a file of another name, as .jsonl"
    )
    parser.add_argument("--prefix", help="begin every answer with this text")
    parser.add_argument(
        "--forced_bos",
        metavar="TEXT",
        help="begin every answer with this token, such as the code of a language; it is not printed",
    )
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end an answer before this text; repeat the flag for more texts"
    )
    parser.add_argument(
        "--suppress", action="append", metavar="TEXT", help="never generate this token; repeat the flag for more tokens"
    )
    parser.add_argument(
        "--score", action="store_true", help="print log-probabilities of given targets instead of answers"
    )
    parser.add_argument("--target", help="with --score: the target of every text")
    choices = parser.add_mutually_exclusive_group()
    choices.add_argument(
        "--choices",
        action="append",
        metavar="TEXT",
        help="print the score of this answer instead of generating; repeat the flag for more answers",
    )
    choices.add_argument(
        "--choices_file", type=Path, metavar="FILE", help="the same, for a file with an answer on each line"
    )
    ways = "; ".join(f"{name}: {description}" for name, description in SCORE_BY.items())
    parser.add_argument(
        "--score_by", choices=tuple(SCORE_BY), help=f"the score of an answer to choose from. {ways} (default: sum)"
    )
    _add_settings(parser)
    parser.add_argument("--seed", type=in_range(int, 0, STEPS), default=0, help="the seed of sampling")
    parser.add_argument(
        "--batch_size", type=in_range(int, 1, 2**16), default=BATCH_SIZE, help="answer this many texts at a time"
    )
    parser.add_argument(
        "--tensor", type=in_range(int, 1, 2**10), default=1, help="the number of devices that share the model"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object for each text, with tokens and log-probabilities"
    )
    cli.add_hosts(parser)
    return parser


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Print an answer to each text."""
    arguments = _make_parser().parse_args(argv)
    options = _make_options(arguments)
    if arguments.target is not None and not arguments.score:
        raise UserError("--target has no effect without --score; give both")
    for flag in ("score", "interactive"):
        if (options.choices or arguments.score_by) and getattr(arguments, flag):
            raise UserError(f"--{flag} cannot be combined with answers to choose from; leave one out")
    with cli.start_jax_on_hosts(arguments):
        answerer = open_answerer(
            arguments.checkpoint,
            arguments.forced_bos,
            step=arguments.step,
            average=arguments.average,
            tensor=arguments.tensor,
        )
        _check_settings(answerer, arguments)
        if arguments.interactive:
            _converse(answerer, options)
            return
        is_chat = isinstance(answerer, ChatGenerator)
        requests_here = _read_requests(arguments, answerer.columns, is_chat) if hosts.is_primary() else ()
        requests = [
            Request(**fields) for fields in hosts.from_primary([dataclasses.asdict(each) for each in requests_here])
        ]
        chooses = _check_choices(requests, options, arguments)
        generates = isinstance(answerer, Generator)
        if arguments.score and not generates:
            raise UserError("--score: an encoder has no targets to score; leave --score out")
        is_single = arguments.input is not None and not (arguments.json or arguments.score or chooses) and generates
        if is_single and sys.stdout.isatty() and options.settings.streams == 1 and hosts.count_hosts() == 1:
            _stream(answerer, requests[0], options)
            return
        strict = arguments.strict or arguments.input is not None
        if arguments.score:
            answers = answerer.scores(requests, arguments.batch_size, strict)
        else:
            answers = answerer.answers(requests, options, arguments.batch_size, strict)
        _print_all(answers, requests, arguments, answerer)


def _print_all(
    answers: Iterator[dict], requests: Sequence[Request], arguments: argparse.Namespace, answerer: Answerer
) -> None:
    """Print each answer, and on stderr the error of each text without an answer.

    Raises UserError at the end if a text has no answer.
    """
    failed, leaky, leaks, said_score = 0, 0, {}, False
    for answer, request in zip(answers, requests, strict=False):  # only host 0 has answers
        _warn_if_cut(request, answer.get("cut"))
        if "error" in answer:
            failed += 1
            say(f"t5lite: {answer['error']}")
            continue
        if "score_by" in answer and not arguments.json and not said_score:
            said_score = True
            say(f"note: the score of an answer is {SCORE_BY[answer['score_by']]}")
        for line in _format_lines(answer, arguments):
            print(line, flush=True)
        if isinstance(answerer, Generator) and not arguments.score and "score_by" not in answer:
            found = answerer.find_leaks(request, answer["output"], answer["tokens"])
            leaky, leaks = leaky + bool(found), {**leaks, **dict.fromkeys(found)}
    _warn_of_leaks(leaky, len(requests) - failed, list(leaks))
    if failed:
        raise UserError(
            f"{failed} of {len(requests)} texts could not be answered; correct them: the lines above name them"
        )


def _check_choices(requests: Sequence[Request], options: Options, arguments: argparse.Namespace) -> bool:
    """Return whether some answers are chosen. Raises UserError for flags without effect."""
    chosen = [bool(request.choices or options.choices) for request in requests if request.fault is None]
    if not any(chosen):
        if arguments.score_by:
            raise UserError("--score_by has no effect without answers to choose from; give --choices")
        return False
    if all(chosen) and (given := _list_generation_flags(arguments)):
        raise UserError(f"{', '.join(given)}: nothing is generated if answers are chosen; leave it out")
    return True


def _list_generation_flags(arguments: argparse.Namespace) -> list[str]:
    """Return the flags that the user gave and that only have an effect if text is generated."""
    others = [name for name in ("stop", "suppress", "prefix") if getattr(arguments, name)]
    return [f"--{name}" for name in (*_settings_from_flags(arguments), *others)]


def _check_settings(answerer: Answerer, arguments: argparse.Namespace) -> None:
    """Raise UserError for flags of generation with a model that does not generate text.

    For other models, print a note about settings of generation_config.json that are not used.
    """
    given = _list_generation_flags(arguments)
    if not isinstance(answerer, Generator):
        given += ["--score_by"] if arguments.score_by else []
        if given:
            raise UserError(f"{', '.join(given)}: the model does not generate text; leave it out")
        return
    rules, architecture = answerer.tokenizer.rules, answerer.objective.architecture
    if rules is not None and (note := describe_ignored(rules, architecture, given)):
        say(f"note: {note}")


if __name__ == "__main__":
    main()
