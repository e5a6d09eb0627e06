"""Options of the command line that say how a source is read: one line each, the same for every command that reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

__all__ = ["SOURCE_OPTIONS", "given", "with_source_options"]


def _option(kind: Any, *flags: str, **settings: Any) -> Any:
    return Annotated[kind | None, typer.Option(*flags, **settings)]


SOURCE_OPTIONS: dict[str, Any] = {
    "n_features": _option(int, "--n-features", help="Number of features; give train and test files the same."),
    "n_rows": _option(int, "--n-rows", help="Number of rows, where the last ones may have no triple."),
    "zero_based": _option(
        bool, "--zero-based/--one-based", help="Number of the first feature; 1 in svmlight, else 0 by default."
    ),
    "dtype": _option(str, "--dtype", help="Dtype of the values, such as float64."),
    "multilabel": _option(
        str, "--multilabel", help="Labels are lists such as 0,2: how many labels there are, or all to count them."
    ),
    "qid": _option(bool, "--qid/--no-qid", help="Whether rows have a query number, qid:7."),
    "sort": _option(bool, "--sort", help="Sort features inside a row instead of refusing them."),
    "importance": _option(bool, "--importance", help="Of Vowpal Wabbit: importances become the column sample_weight."),
    "tag": _option(bool, "--tag", help="Of Vowpal Wabbit: tags become the column tag."),
    "header": _option(bool, "--header/--no-header", help="Whether the first line of a table has names; it has."),
    "delimiter": _option(str, "--delimiter", help="What stands between fields: a character, or tab, space, pipe, ..."),
    "label": _option(
        str, "--label", help="Field of a table, of records, obs, or dataset of HDF5 that becomes the column y."
    ),
    "weight": _option(str, "--weight", help="Field that becomes the column sample_weight."),
    "keep": _option(str, "--keep", metavar="FIELDS", help="Fields that become columns: user,age:int64,price:float32."),
    "drop": _option(str, "--drop", metavar="FIELDS", help="Fields that are left out."),
    "missing": _option(str, "--missing", help="What an empty field, or one that is not there, is: error, zero or nan."),
    "categorical": _option(
        str, "--categorical", metavar="FIELDS", help="Fields of text, each text of which is a feature: color,C*"
    ),
    "encode": _option(
        str, "--encode", help="How texts become features: dictionary, hash to --n-features with signs; or number (vw)."
    ),
    "unknown": _option(str, "--unknown", help="What a text becomes that is no known feature: add, ignore or error."),
    "bucket": _option(
        str, "--bucket", metavar="FIELDS", help="Numbers of which the range is a feature: age:18|30|50,I*:log2"
    ),
    "row": _option(
        str, "--row", metavar="FIELD", help="Of a table of triples: field of the row, as user or user:string."
    ),
    "feature": _option(str, "--feature", metavar="FIELD", help="Field of the feature, as item or item:string."),
    "value": _option(str, "--value", metavar="FIELD", help="Field of the value; without one each entry is 1."),
    "indices": _option(
        str, "--indices", metavar="FIELD", help="Column, or feature of records, with lists of features."
    ),
    "values": _option(
        str, "--values", metavar="FIELD", help="Column with lists of their values; without one each is 1."
    ),
    "vector": _option(str, "--vector", metavar="FIELD", help="Column of vectors of Spark ML, or of dense lists."),
    "features": _option(
        str, "--features", metavar="FEATURES", help="Features with as many numbers in each record: age,vector[64]."
    ),
    "layout": _option(str, "--layout", help="What a record of a TFRecord file is: example (the default) or elwc."),
    "compression": _option(
        str, "--compression", help="Of a TFRecord file: none, gzip or zlib, whatever its name says."
    ),
    "dataset": _option(str, "--dataset", help="Of HDF5: name of the dataset, where it has several of 2 dimensions."),
    "layer": _option(str, "--layer", help="Of AnnData: raw, or a layer's name; X by default."),
    "names": _option(
        str,
        "--names",
        help="What features are called: of AnnData a column of var, of tenx ids (the default) or names.",
    ),
    "genome": _option(str, "--genome", help="Of tenx: which matrix, where a file of Cell Ranger 2 has several."),
    "group": _option(str, "--group", help="Of binsparse: where in the file the matrix is."),
    "sql": _option(str, "--sql", metavar="QUERY", help="Of a database: the query to read."),
    "dsn": _option(str, "--dsn", help="Of PostgreSQL: how to connect; PGHOST, PGPASSWORD, ... are heeded."),
    "rows": _option(str, "--rows", metavar="START:STOP", help="Of a store: some of its rows, such as 1000:2000."),
    "select": _option(str, "--select", help="Of a store: some of its features, renumbered, such as 3,7-9."),
    "store_version": _option(int, "--store-version", help="Of a store: read this version of SRC, not its newest."),
}
"""Name of each option, as a keyword of sources, and what typer is told of it."""


def with_source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes ``**options`` all options of sources, None where they are not given."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in SOURCE_OPTIONS.items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *more)}
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given: a format is told of no other, so that it can refuse those it does not know."""
    found = {name: value for name, value in options.items() if value is not None}
    if "multilabel" in found:
        found["multilabel"] = _number_of_labels(found["multilabel"])
    return found


def _number_of_labels(text: str) -> int | bool:
    """What `--multilabel` says: a number of labels, or "all", which formats call True."""
    if text == "all":
        return True
    if not text.isdecimal():
        raise typer.BadParameter(f"--multilabel {text}: expected a number of labels, or all")
    return int(text)
