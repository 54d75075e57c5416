"""Questions to the rows of a cache, asked with DuckDB and with Polars.

    python examples/query_rows.py CACHE

The rows are Parquet files that any engine reads where they lie. Which of them count, the log says:
``commits/000000000000.json``, ``...1.json`` and so on, each of which names one file
``rows/<sha256>.parquet`` for every kind of rows that it brought:

    {"number": 0, "rows": {"latents": {"num_rows": 96, "sha256": "5f3c..."}, ...}, ...}

A file that no commit names does not count. A tombstone ends rows of commits before its own. Of
sources and annotations the newest row counts. Of three scenes of 24 s, each cut into three clips:

    $ mmldm synth scenes --num-clips 3 --seconds 24
    $ mmldm ingest scenes/clips.jsonl --cache cache
    $ python examples/query_rows.py cache
    duckdb_answers
      clips per label
        bouncing_ball  3
        pendulum  3
        rain  3
      loudness, dBFS: quantiles 0.05, 0.5, 0.95
        -24.72  -20.58  -20.36
      clips encoded per device, and seconds
        cpu  9  374.55
      bytes per recipe
        kl.audio  705ab2d169a7  2506752
        kl.video  c61d7fd8d5b3  11796480
      clips of the first source: key, start in seconds, frames
        1cc77997cf5f5988eebfee7aadf9ef62-00000000-10  0.00  100
        1cc77997cf5f5988eebfee7aadf9ef62-00000100-10  10.00  100
        1cc77997cf5f5988eebfee7aadf9ef62-00000200-10  20.00  40
    polars_answers
      clips per label
    ...
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import duckdb
import polars as pl

from latents.cache.layout import CacheLayout, find_cache
from latents.cache.log import CommitLog
from latents.cache.refs import require_ref
from latents.cache.rows import ROW_KINDS, RowKind, empty_table, with_commit
from latents.errors import CacheError

RowFiles = Mapping[RowKind, list[tuple[str, int]]]
"""By kind of rows: path of a file of rows, and number of the commit that names it."""


def row_files(layout: CacheLayout, last: int) -> RowFiles:
    """The files of rows of a cache in a folder, up to a commit."""
    files: dict[RowKind, list[tuple[str, int]]] = {kind: [] for kind in ROW_KINDS}
    for commit in CommitLog(layout).commits(0, last):
        for kind, file in commit.files.items():
            files[kind].append((f"{layout.url}/{layout.rows(file.sha256)}", commit.number))
    return files


VIEWS = """
CREATE VIEW latents AS
    SELECT * FROM every_latents l WHERE NOT EXISTS (
        FROM every_tombstones t WHERE t.reason <> 'readmitted' AND t.commit > l.commit
        AND (t.source = l.source AND (t.clip = l.clip OR t.clip IS NULL)
             OR t.recipe = l.recipe OR t.shard = l.shard))
    QUALIFY row_number() OVER (PARTITION BY recipe, clip ORDER BY commit DESC) = 1;
CREATE VIEW sources AS
    SELECT * FROM (
        FROM every_sources QUALIFY row_number() OVER (PARTITION BY uri ORDER BY commit DESC) = 1
    ) s WHERE NOT EXISTS (
        FROM every_tombstones t WHERE t.reason <> 'readmitted' AND t.commit > s.commit
        AND t.uri = s.uri);
CREATE VIEW annotations AS
    FROM every_annotations
    QUALIFY row_number() OVER (PARTITION BY source ORDER BY commit DESC) = 1;
"""
"""What counts, as DuckDB sees it."""

QUERIES = {
    "clips per label": """
        SELECT coalesce(label, '(none)') AS name, count(*) FROM latents
        LEFT JOIN annotations USING (source) WHERE recipe = $video GROUP BY name ORDER BY name""",
    "loudness, dBFS: quantiles 0.05, 0.5, 0.95": """
        SELECT quantile_cont(loudness_dbfs, 0.05), quantile_cont(loudness_dbfs, 0.5),
               quantile_cont(loudness_dbfs, 0.95) FROM latents WHERE recipe = $video""",
    "clips encoded per device, and seconds": """
        SELECT device, count(*), sum(encode_seconds) FROM latents WHERE recipe = $video
        GROUP BY device ORDER BY device""",
    "bytes per recipe": """
        SELECT field, recipe[:12] AS short, sum(list_product(shape)::BIGINT
               * CASE dtype WHEN 'uint8' THEN 1 WHEN 'float16' THEN 2 ELSE 4 END)::BIGINT
        FROM latents GROUP BY field, recipe ORDER BY field, short""",
    "clips of the first source: key, start in seconds, frames": """
        SELECT clip, start_frame / fps, shape[1] FROM latents
        WHERE recipe = $video AND source = (SELECT digest FROM sources ORDER BY uri LIMIT 1)
        ORDER BY start_frame""",
}


def duckdb_answers(files: RowFiles, video: str) -> dict[str, list[tuple[Any, ...]]]:
    """An answer to each query; ``video`` is the recipe that ``kl.video`` is to be of."""
    connection = duckdb.connect()
    for kind, named in files.items():
        if named:
            paths, commits = zip(*named, strict=True)
            connection.execute(f"CREATE TABLE {kind}_files (filename VARCHAR, commit BIGINT)")
            connection.execute(
                f"INSERT INTO {kind}_files SELECT unnest($1), unnest($2)", [paths, commits]
            )
            rows = connection.read_parquet(sorted(set(paths)), filename=True)
            rows.join(connection.table(f"{kind}_files"), "filename").create_view(f"every_{kind}")
        else:
            connection.register(f"every_{kind}", with_commit(empty_table(kind), 0))
    connection.execute(VIEWS)
    answers = {}
    for title, query in QUERIES.items():
        parameters = {"video": video} if "$video" in query else {}
        answers[title] = connection.execute(query, parameters).fetchall()
    return answers


def scan_rows(files: RowFiles, kind: RowKind) -> pl.LazyFrame:
    """All rows of a kind, each with its commit, whether they count or not.

    They are read where they are asked for, and of them only the columns that are.
    """
    if not files[kind]:
        return pl.DataFrame(with_commit(empty_table(kind), 0)).lazy()
    paths = pl.LazyFrame(files[kind], schema=["file", "commit"], orient="row")
    unique = sorted({path for path, _ in files[kind]})
    return pl.scan_parquet(unique, include_file_paths="file").join(paths, on="file")


def living(rows: pl.LazyFrame, tombstones: pl.LazyFrame, column: str) -> pl.LazyFrame:
    """The rows that no tombstone of a later commit ended by this column."""
    ended = tombstones.group_by(column).agg(pl.max("commit").alias("ended"))
    joined = rows.join(ended, on=column, how="left")
    return joined.filter(pl.col("commit") >= pl.col("ended").fill_null(-1)).drop("ended")


def newest(rows: pl.LazyFrame, *key: str) -> pl.LazyFrame:
    """The row of the last commit of each key."""
    return rows.sort("commit").unique(key, keep="last")


def polars_answers(files: RowFiles, video: str) -> dict[str, list[tuple[Any, ...]]]:
    """As `duckdb_answers`."""
    ends = scan_rows(files, "tombstones").filter(pl.col("reason") != "readmitted")
    latents = scan_rows(files, "latents")
    for column in ("source", "clip", "recipe", "shard"):
        # Beside a clip, the source only says whose clip it is.
        beside = pl.col("clip").is_null() if column == "source" else pl.lit(value=True)
        latents = living(latents, ends.filter(beside, pl.col(column).is_not_null()), column)
    latents = newest(latents, "recipe", "clip")
    sources = newest(scan_rows(files, "sources"), "uri")
    sources = living(sources, ends.filter(pl.col("uri").is_not_null()), "uri")
    annotations = newest(scan_rows(files, "annotations"), "source").select("source", "label")

    clips = latents.filter(pl.col("recipe") == video)
    loudness, label = pl.col("loudness_dbfs"), pl.col("label").fill_null("(none)")
    num_values = pl.col("shape").list.agg(pl.element().product())
    value_bytes = pl.col("dtype").replace_strict({"uint8": 1, "float16": 2, "float32": 4})
    answers = (
        clips.join(annotations, on="source", how="left").group_by(label).len().sort("label"),
        clips.select(loudness.quantile(at, "linear").alias(f"{at}") for at in (0.05, 0.5, 0.95)),
        clips.group_by("device").agg(pl.len(), pl.sum("encode_seconds")).sort("device"),
        latents.group_by("field", pl.col("recipe").str.head(12))
        .agg((num_values * value_bytes).sum())
        .sort("field", "recipe"),
        clips.join(sources.sort("uri").head(1), left_on="source", right_on="digest", how="semi")
        .sort("start_frame")
        .select("clip", pl.col("start_frame") / pl.col("fps"), pl.col("shape").list.first()),
    )
    return dict(zip(QUERIES, (answer.collect().rows() for answer in answers), strict=True))


def main(cache: str) -> None:
    """Writes the answers of both, which differ in the last bits at most."""
    try:
        layout = find_cache(cache)
        current = require_ref(layout, "current")
    except CacheError as error:
        sys.exit(str(error))
    files = row_files(layout, current.commit)
    for answers in (duckdb_answers, polars_answers):
        sys.stdout.write(f"{answers.__name__}\n")
        for title, rows in answers(files, current.recipes["kl.video"]).items():
            sys.stdout.write(f"  {title}\n")
            for row in rows:
                shown = (
                    f"{value:.2f}" if isinstance(value, float) else str(value) for value in row
                )
                sys.stdout.write(f"    {'  '.join(shown)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
