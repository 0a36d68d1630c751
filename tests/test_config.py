import functools
from dataclasses import fields
from pathlib import Path

import pytest

from robopolicy.config import ConfigError, TrainConfig, bind, build, compose, explain, keys_of, read, to_plain
from robopolicy.resources import conf_dir
from robopolicy.spec import FeatureSpec, PolicySpec

FEATURE = {"_target_": "robopolicy.spec.FeatureSpec", "shape": [3], "unit": "m"}
SPEC = {
    "_target_": "robopolicy.spec.PolicySpec",
    "observation": {"observation.state": FEATURE},
    "obs_horizon": 1,
    "action_horizon": 8,
    "execute_horizon": 4,
    "control_hz": 20.0,
}


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    files = {
        "run.yaml": "defaults: [{policy: carp}, {train: default}, _self_]\nseed: 1\n",
        "broken.yaml": "defaults: [{train: default}, _self_]\nname: ???\ninner:\n  size: ???\n",
        "dangling.yaml": "other: ${nowhere}\n",
        "choose.yaml": "defaults:\n- policy: ???\n",
        "policy/carp.yaml": "width: 128\ndepth: ${seed}\n",
        "policy/bc.yaml": "width: 64\n",
        "train/default.yaml": "steps: 100\nbatch_size: 8\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_node_is_built_with_its_inner_nodes_and_runtime_arguments_win():
    action = FeatureSpec((7,))
    spec = build(SPEC, action=action, control_hz=10.0)
    assert spec.action is action
    assert spec.control_hz == 10.0
    assert spec.observation == {"observation.state": FeatureSpec((3,), unit="m")}


def test_a_partial_node_waits_for_its_remaining_arguments():
    made = build({"_target_": "robopolicy.spec.FeatureSpec", "_partial_": True, "unit": "rad"})
    assert isinstance(made, functools.partial)
    assert made(shape=(2,)) == FeatureSpec((2,), unit="rad")


def test_a_node_that_a_runtime_argument_replaces_is_not_built():
    node = {**SPEC, "action": {"_target_": "robopolicy.spec.FeatureSpec", "shape": "nonsense"}}
    assert isinstance(build(node, action=FeatureSpec((7,))), PolicySpec)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "robopolicy.resources.os.system",  # reached through a module of ours
        "robopolicy.resources.Path",  # a class, but imported there
        "robopolicy.spec.did_you_mean",  # ours, but a function
        "robopolicyx.spec.FeatureSpec",
        "robopolicy",
        "robopolicy.spec.Missing",
        "robopolicy.nothing.FeatureSpec",
        "robopolicy.${oc.env:HOME}",
        7,
    ],
)
@pytest.mark.parametrize("nest", [lambda node: node, lambda node: {**FEATURE, "names": [{"deep": node}]}])
@pytest.mark.parametrize("use", [build, bind])
def test_targets_that_are_not_our_classes_are_refused_at_any_depth(target, nest, use):
    with pytest.raises(ConfigError, match="_target_") as error:
        use(nest({"_target_": target, "command": "true"}))
    assert repr(target) in str(error.value)


def test_an_interpolation_cannot_smuggle_a_target_in(tmp_path):
    from omegaconf import OmegaConf

    text = "_target_: robopolicy.spec.FeatureSpec\nshape: '\\${oc.decode:\"{_target_: os.system, command: touch x}\"}'\n"
    node = OmegaConf.create(text)
    made = build({"_target_": "robopolicy.spec.FeatureSpec", "shape": [1], "unit": to_plain(node)["shape"]})
    assert made.unit.startswith("${")  # a text stays a text: nothing is resolved twice
    with pytest.raises(ConfigError, match="refused"):
        build(OmegaConf.create(text.replace("\\$", "$")))


def test_within_narrows_what_is_allowed():
    with pytest.raises(ConfigError, match=r"allowed: classes defined in robopolicy.policies"):
        build(FEATURE, within="robopolicy.policies")
    assert build(FEATURE, within=("robopolicy.policies", "robopolicy.spec")).shape == (3,)


@pytest.mark.parametrize("use", [build, bind])
def test_unknown_and_missing_arguments_are_named(use):
    with pytest.raises(ConfigError, match=r"FeatureSpec\) has no argument 'shap'; did you mean 'shape'"):
        use({"_target_": "robopolicy.spec.FeatureSpec", "shap": 3})
    with pytest.raises(ConfigError, match=r"observation\.x \(robopolicy.spec.FeatureSpec\) lacks 'shape'"):
        use({**SPEC, "observation": {"x": {"_target_": "robopolicy.spec.FeatureSpec"}}}, action=FeatureSpec((1,)))
    with pytest.raises(ConfigError, match="lacks 'action'"):
        use(SPEC)


def test_bind_checks_every_node_of_a_tree_and_constructs_none():
    wrong_value = {"_target_": "robopolicy.spec.FeatureSpec", "shape": "nonsense"}
    bind({"a": {"b": [wrong_value]}})
    with pytest.raises(ConfigError, match=r"a\.b\[0\]"):
        bind({"a": {"b": [{**wrong_value, "typo": 1}]}})


def test_build_wants_a_target():
    with pytest.raises(ConfigError, match="_target_"):
        build({"width": 3})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stpes=3"], "unknown key 'train.stpes': did you mean 'train.steps'?"),
        (["train={stpes: 3}"], "unknown key 'train.stpes': did you mean 'train.steps'?"),
        (["train={zz: 3}"], "unknown key 'train.zz': if what it configures takes it, add it by +train.zz=VALUE"),
        (["steps=3"], "unknown key 'steps': did you mean 'train.steps'?"),
        (["polcy=carp"], "unknown key 'polcy': did you mean 'policy'?"),
        (["policy.widht=3"], "unknown key 'policy.widht': did you mean 'policy.width'?"),
        (["zzz=3"], "unknown key 'zzz': available: policy, seed, train"),
        (["policy=crap"], "'policy' has no option 'crap': did you mean 'carp'?"),
        (["policy=zzz"], "'policy' has no option 'zzz': available: bc, carp"),
        (["seed=2", "train.stpes=3", "policy=bc"], "unknown key 'train.stpes': did you mean 'train.steps'?"),
        (["train.steps"], "'train.steps' is not of the form key=value: Error parsing override 'train.steps'"),
    ],
)
def test_a_wrong_override_gives_one_sentence_with_what_would_have_worked(conf, overrides, message):
    with pytest.raises(ConfigError) as error:
        compose("run", overrides, conf)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("choose", "missing 'policy': give policy=OPTION, one of bc, carp"),
        ("nothing", "there is no configuration 'nothing'"),
    ],
)
def test_what_a_configuration_lacks_is_named(conf, name, message):
    with pytest.raises(ConfigError) as error:
        compose(name, folder=conf)
    assert str(error.value) == message


def test_plain_configurations_are_resolved_and_complete(conf):
    config = compose("run", ["seed=7", "train.steps=5"], conf)
    expected = {"policy": {"width": 128, "depth": 7}, "train": {"steps": 5, "batch_size": 8}, "seed": 7}
    assert to_plain(config) == expected
    assert type(to_plain(config)["policy"]) is dict
    assert set(keys_of(config)) >= {"policy", "policy.depth", "train.steps", "seed"}
    with pytest.raises(ConfigError, match=r"missing 'name', 'inner\.size': give name=VALUE inner.size=VALUE"):
        to_plain(compose("broken", folder=conf))
    with pytest.raises(ConfigError, match="other: Interpolation key 'nowhere' not found"):
        to_plain(compose("dangling", folder=conf))


def test_every_train_setting_is_typed_and_checked():
    assert read(TrainConfig, {"steps": 9, "num_checkpoints": 2, "clip_norm": 1}).clip_norm == 1.0
    for node, message in [
        ({"steps": "abc"}, "train.steps=abc does not work: expected integer"),
        ({"resume": "maybe"}, "train.resume=maybe does not work: expected bool"),
        ({"stpes": 3}, "unknown key 'train.stpes': did you mean 'steps'?"),
        ({"device": "gpu"}, "train.device='gpu' does not work: give 'cpu', 'cuda' or 'cuda:N'"),
    ]:
        with pytest.raises(ConfigError) as error:
            read(TrainConfig, node)
        assert str(error.value) == message
    for setting in fields(TrainConfig):
        if setting.type in ("int", "float", "str"):
            bad = "nonsense" if setting.type == "str" else -1
            with pytest.raises(ConfigError, match=rf"train\.{setting.name}="):
                TrainConfig(**{setting.name: bad})


CONF = conf_dir()
CHOICES = [f"{group}={path.stem}" for group in ("policy", "critic", "experiment") for path in (CONF / group).glob("*.yaml")]


@pytest.mark.parametrize("choice", sorted(CHOICES))
@pytest.mark.parametrize("size", [[], ["debug=smoke"]])
def test_every_shipped_recipe_binds(choice, size):
    config = compose("train", [choice, *size])
    read(TrainConfig, config.train)
    nodes = [config[kind] for kind in ("policy", "critic") if config.get(kind)]
    assert nodes
    for node in nodes:
        bind(node, observation={}, action=FeatureSpec((7,)), control_hz=20.0)


def test_other_errors_keep_their_message():
    assert explain(ValueError("as it is")) == "as it is"
