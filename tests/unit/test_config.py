import copy
import re
import subprocess
import sys

import pytest
import yaml

from earmark.config import check_config
from earmark.errors import ConfigError
from earmark.retrieval.section import check_retrieval

SCHEMA_PATH = "workflow/schemas/config.schema.yaml"


@pytest.fixture
def config(repo):
    return yaml.safe_load((repo / "config.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def schema(repo):
    return yaml.safe_load((repo / SCHEMA_PATH).read_text(encoding="utf-8"))


def put(config, path, value):
    changed = copy.deepcopy(config)
    *sections, key = path.split(".")
    place = changed
    for section in sections:
        place = place[section]
    place[key] = value
    return changed


def complaint(config, repo):
    with pytest.raises(ConfigError) as caught:
        check_config(config, repo / SCHEMA_PATH)
    return str(caught.value)


def config_keys(section, prefix=""):
    for key, value in section.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from config_keys(value, f"{prefix}{key}.")


def schema_keys(schema, prefix=""):
    for key, value in schema.get("properties", {}).items():
        yield prefix + key
        yield from schema_keys(value, f"{prefix}{key}.")


def test_the_defaults_are_valid(config, repo):
    check_config(config, repo / SCHEMA_PATH)


def test_config_and_schema_hold_the_same_keys(config, schema):
    assert sorted(config_keys(config)) == sorted(schema_keys(schema))


def test_every_section_refuses_unknown_keys_and_requires_all_of_its_own(schema):
    def sections(node, path):
        if "properties" in node:
            yield path, node
            for key, child in node["properties"].items():
                yield from sections(child, f"{path}.{key}")

    for path, node in sections(schema, "config"):
        assert node.get("additionalProperties") is False, path
        assert sorted(node["required"]) == sorted(node["properties"]), path


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("max_reject_fraction", "max_rejected_fraction"),
        ("corpus.shard", "corpus.shards"),
        ("corpus.checks.min_duration", "corpus.checks.min_duration_s"),
        ("chunks.context", "chunks.context_s"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one_with_its_full_path(config, repo, path, near):
    assert f"unknown key '{path}'; did you mean '{near}'?" in complaint(put(config, path, 1), repo)


def test_a_key_unlike_any_other_and_a_key_that_is_no_text_are_refused_too(config, repo):
    message = complaint({**config, "zzz": 1, 7: 2}, repo)
    assert "unknown key 'zzz'" in message
    assert "unknown key '7'" in message


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("corpus.shards", "four", "corpus.shards: 'four' is not of type 'integer'"),
        ("corpus.shards", True, "corpus.shards: True is not of type 'integer'"),
        ("corpus.shards", 0, "corpus.shards: 0 is less than the minimum of 1"),
        ("corpus.format", "csv", "corpus.format is 'csv'; expected one of tsv, jsonl"),
        ("corpus.manifest", None, "corpus.manifest: None is not of type 'string'"),
        ("corpus", None, "corpus: None is not of type 'object'"),
        ("max_rejected_fraction", 1.5, "max_rejected_fraction: 1.5 is greater than the maximum of 1"),
        ("seed", -1, "seed: -1 is less than the minimum of 0"),
        ("glossary.terms", [], "glossary.terms: "),
        ("glossary.aliases", "one.json", "glossary.aliases: 'one.json' is not of type 'array'"),
        ("splits.test_speakers", 1.0, "splits.test_speakers is 1.0; expected a list of names"),
        ("splits.unseen_terms", "all", "splits.unseen_terms is 'all'; expected a list of names"),
        ("export.formats", ["flat", "flac"], "export.formats.1 is 'flac'; expected one of funasr_nano"),
        ("run", "../escape", "run: '../escape' does not match"),
        ("run", "a b", "run: 'a b' does not match"),
    ],
)
def test_a_wrong_value_is_a_sentence_that_begins_with_its_key(config, repo, path, value, says):
    message = complaint(put(config, path, value), repo)
    assert f"  - {says}" in message


def test_a_missing_key_says_where_the_default_is(config, repo):
    del config["chunks"]["context_s"]
    assert "chunks: 'context_s' is a required property; config.yaml shows the default" in complaint(config, repo)


def test_all_problems_are_listed_at_once(config, repo):
    message = complaint(put(put(config, "seed", "x"), "corpus.shard", 2), repo)
    assert len(message.splitlines()) == 3


def test_only_a_learned_temperature_has_a_floor_to_begin_above(config, repo):
    low = put(config, "retrieval.pooled.objective.temperature", 0.005)
    check_config(low, repo / SCHEMA_PATH)
    said = complaint(put(low, "retrieval.pooled.objective.learn_temperature", True), repo)
    assert "retrieval.pooled.objective.temperature" in said and "0.01" in said


def test_checking_a_configuration_loads_no_pytorch(repo):
    """Snakemake does so at its start and in each of a cluster's jobs."""
    rules = (repo / "rules/common.smk").read_text(encoding="utf-8")
    modules = sorted(set(re.findall(r"^from (earmark\S*) import", rules, re.MULTILINE)))
    assert "earmark.retrieval.section" in modules
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo).returncode == 0


def test_a_folder_that_is_no_text_model_is_refused_before_anything_runs(config, tmp_path):
    pooled = put(put(config, "retrieval.interaction", "pooled"), "retrieval.pooled.text_model.source", str(tmp_path))
    schedule = config["train"]["schedule"]
    check_retrieval(pooled["retrieval"], schedule)  # nobody reads it
    for towers in ("text_model", "fused"):
        with pytest.raises(ConfigError, match=r"holds no modules\.json"):
            check_retrieval(put(pooled, "retrieval.pooled.towers", towers)["retrieval"], schedule)
    (tmp_path / "modules.json").touch()
    check_retrieval(put(pooled, "retrieval.pooled.towers", "fused")["retrieval"], schedule)
