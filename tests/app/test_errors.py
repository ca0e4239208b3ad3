"""Wrong names and values end in one message that names the argument and what to do."""

import pytest
from omegaconf import OmegaConf

from lightning_xai.app.errors import check_arguments, error_message
from lightning_xai.callbacks.records import check_class_names

OWN = ["model._target_=my_module.Net", "data._target_=my_module.Data", "trainer.max_epochs=1", "regions.size=4"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("perturbation=blr", ["perturbation 'blr' is unknown. Did you mean 'blur'?", "zero"]),
        ("score=probabilty", ["score 'probabilty' is unknown. Did you mean 'probability'"]),
        (
            "metrics=xyz",
            [
                "metrics 'xyz' is unknown. Known: comparison, consistency, default, dissection, drift, faithfulness, ",
                "relevance",
                "unit_ablation.",
            ],
        ),
        ("metrics=[importance,sped]", ["Could not load 'metrics/sped'"]),
        ("+select=slise", ["select 'slise' is unknown. Did you mean 'slice'?"]),
        ("select=slice", ["use +select=slice"]),
        ("rule=epsilon_plu", ["rule 'epsilon_plu' is unknown. Did you mean 'epsilon_plus'", "epsilon_gamma_box"]),
        ("attribution=gradcam", ["attribution 'gradcam' is unknown. Did you mean 'grad_cam'"]),
        ("rule.epsilom=1", ["'rule.epsilom' is unknown. Did you mean 'rule.epsilon'"]),
        ("perturbation.detla=2", ["'perturbation.detla' is unknown. Did you mean 'perturbation.delta'"]),
        ("data.limit=2", ["'data.limit' is not in the config", "+data.limit=..."]),
        ("+experiment", ["Error parsing override '+experiment'"]),
        ("perturbation=zero,blur", ["add --multirun"]),
    ],
)
def test_composition_errors_are_one_message(wrong, words, command, here):
    code, out, err = command(wrong)
    assert (code, out) == (1, "")
    assert err.startswith("lightning-xai: ")
    assert all(word in err for word in words)
    assert "Traceback" not in err
    assert "search path" not in err
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("perturbation=blur perturbation.sigma=-1", "perturbation: sigma must be positive, got -1."),
        ("perturbation=relu perturbation.strengths=[1,2]", "ReLU has no strength to vary: leave it out."),
        ("perturbation.strengths=3", "perturbation.strengths must be numbers, e.g. [0.1,0.2,0.3], got 3."),
        ("perturbation.strengths=[1]", "metrics.speed: perturbations must be two states or more"),
        ("metrics.speed.abscissa=time", "metrics.speed: abscissa must be one of index, strength, got 'time'."),
        ("+metrics.speed.scor=logit", "metrics.speed: Unexpected keyword arguments: `scor`"),
        ("metrics=speed perturbation=relu", "metrics.speed: ReLU has no strength to vary"),
        ("attribution=saliency rule=epsilon_plus", "rule=... says how attribution=lrp passes relevance on"),
        ("attribution=saliency show_rules=true", "show_rules=true is for attribution=lrp; Saliency has no rules"),
        ("rule.epsilon=-1", "attribution.composite: epsilon must be a number >= 0, got -1."),
        (
            "metrics.relevance.part=all",
            "metrics.relevance: part 'all' is unknown. Known: signed, positive, absolute",
        ),
        ("perturbation.delta=abc", "perturbation: delta of Negative must be a number, got 'abc'."),
        ("perturbation=blur perturbation.sigma=abc", "perturbation: sigma of Blur must be a number, got 'abc'."),
        ("perturbation=permute perturbation.seed=x", "perturbation: seed of Permute must be an integer, got 'x'."),
        ("trainer.max_epochs=abc", "trainer.max_epochs must be an integer or null, got 'abc'."),
        ("monitor.pictures.samples=x", "monitor.pictures: samples must be an integer, got 'x'."),
        ("+metrics.importance.chunk_size=abc", "metrics.importance: chunk_size must be an integer, got 'abc'."),
        ("monitor.unpack=f", "monitor: unpack must be a function of a batch, got 'f'."),
        ("monitor.stages=[]", "monitor: stages is empty: name at least one of validate, test."),
        ("regions=segments", "regions.labels must be given: regions.labels=..."),
        ("regions.size=0", "regions: size must be a positive integer or one per spatial axis, got 0."),
        ("monitor.stages=[fit]", "monitor: stage 'fit' is unknown. Known: validate, test."),
        ("monitor.max_samples=0", "monitor: max_samples must be at least 1, got 0."),
        ("monitor.pictures.samples=0", "monitor.pictures: samples must be at least 1, got 0."),
        ("checkpoint=nowhere.ckpt", "checkpoint=nowhere.ckpt does not exist: name a file that Lightning has saved."),
        ("checkpoint=my_module.py", "checkpoint=my_module.py is not a checkpoint: name a file"),
        ("seed=one", "seed must be an integer or null, got 'one'."),
        ("seed=-1", "seed must be from 0 to 4294967295, got -1."),
        ("monitor.pictures.class_names=3", "monitor.pictures: class_names must be a list of names, got 3."),
        ("monitor.stages=[3]", "monitor: stage must be a name, one of validate, test, got 3."),
        ("model._target_=nowhere.Net", "model: Error loading 'nowhere.Net':"),
        ("model._target_=my_module.Nut", "Are you sure that 'Nut' is importable from module 'my_module'?"),
        ("data._target_=my_module.Nothing", "data: Error loading 'my_module.Nothing':"),
        ("+model.widht=3", "argument 'model.widht' is unknown. Did you mean 'model.width'"),
        ("+data.batchsize=8", "argument 'data.batchsize' is unknown. Did you mean 'data.batch_size'"),
        ("metrics=dissection", "metrics.dissection.concepts must be given: metrics.dissection.concepts=..."),
        ("perturbation=custom", "perturbation.factor must be given: perturbation.factor=..."),
        (
            "+metrics.relevance.score=margin",
            "metrics.relevance: Relevance takes no score: it explains that of its attri",
        ),
        ("objective=gini", "objective 'gini' is unknown. Known: network, test, importance"),
        ("data._target_=my_module.Net", "data._target_=my_module.Net must be a LightningDataModule, and is none."),
        ("+data.limit=0", "data: limit must be at least 1, got 0."),
        ("trainer.accelerator=gpux", "trainer: You selected an invalid accelerator name: `accelerator='gpux'`."),
        ("logger=wandb", "logger: Requirement 'wandb"),
    ],
)
def test_build_errors_are_one_message(wrong, words, command, here):
    code, _, err = command(*wrong.split())
    assert code == 1
    assert err.startswith("lightning-xai: ")
    assert words in err
    assert err.endswith("The whole trace is in run/error.txt.\n")
    assert "Traceback" not in err
    assert "Traceback" in (here / "run" / "error.txt").read_text()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("regions.size=99", "size 99 of axis 0 is larger than the 8 cells there."),
        ("perturbation.channels=7", "channels=(7,) is out of range: the input has 1 channels."),
        ("monitor.model=nett", "model 'nett' is unknown. Did you mean 'net'"),
        ("model._target_=my_module.Named", "On the command line: score.output=key."),
        ("data._target_=my_module.Strange", "On the command line: 'monitor.unpack={_target_:my_module.unpack"),
        ("model._target_=lightning_xai.app.models.DemoCNN", "RuntimeError: "),
    ],
)
def test_run_errors_are_one_message(wrong, words, command):
    code, _, err = command(*OWN, wrong)
    assert code == 1
    assert err.startswith("lightning-xai: ")
    assert words in err
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (3, "part must name a class: part._target_=my_module.MyClass, got 3."),
        ({"_target_": 3}, "part must name a class: .* got {'_target_': 3}."),
        (
            {"_target_": "lightning.Trainer", "max_epoch": 1},
            "'part.max_epoch' is unknown. Did you mean 'part.max_epochs'",
        ),
        (
            {"_target_": "lightning.Trainer", "limit_val_batches": "all"},
            "part.limit_val_batches must be an integer or a number or null, got 'all'.",
        ),
        (
            {"_target_": "my_module.Net", "hidden": "four"},
            "part.hidden must be an integer, got 'four'.",
        ),  # by its default
        ({"_target_": "my_module.Net", "hidden": "???"}, "part.hidden must be given: part.hidden=..."),
        (
            {"_target_": "lightning.Trainer", "callbacks": {"_target_": "my_module.Net", "hiden": 4}},
            "'part.callbacks.hiden' is unknown. Did you mean 'part.callbacks.hidden'",
        ),
    ],
)
@pytest.mark.usefixtures("here")
def test_arguments_are_checked_before_anything_is_built(entry, words, monkeypatch):
    monkeypatch.syspath_prepend(".")
    with pytest.raises((TypeError, ValueError), match=words):
        check_arguments("part", OmegaConf.create({"part": entry}).part)


def test_arguments_that_may_be_words_are_taken():
    for value in ("auto", 2, None):
        check_arguments(
            "trainer", OmegaConf.create({"_target_": "lightning.Trainer", "devices": value, "max_epochs": 2})
        )


def test_a_number_for_a_choice_is_one_message(command):
    assert command("regions=3")[2] == (
        "lightning-xai: Config group override must be a string or a list. Got int. On the command line: a choice is a "
        "name, regions=windows, and its arguments follow, regions.size=3.\n"
    )


def test_class_names_have_a_place_on_the_command_line():
    with pytest.raises(ValueError, match="has 1 names, and the model's output 3 classes") as caught:
        check_class_names(["cat"], 3)
    assert error_message(caught.value).endswith(
        "in the order of the outputs. On the command line: 'monitor.pictures.class_names=[cat,dog]'."
    )


def test_without_a_gpu_the_remedy_is_the_cpu(command, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("lightning.pytorch.accelerators.CUDAAccelerator.is_available", staticmethod(lambda: False))
    _, _, err = command("trainer.accelerator=gpu")
    assert "No supported gpu backend found! On the command line: trainer.accelerator=cpu." in err


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_PROCID"])
def test_of_several_processes_the_first_one_speaks(command, here, monkeypatch, variable):
    command("regions.size=0")
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert command("regions.size=0")[2] == ""
    assert "size must be a positive integer" in command("regions.size=0", "hydra.run.dir=alone")[2]
    assert (here / "run" / "error-1.txt").is_file()


def test_help_says_what_it_is_and_what_there_is_to_choose(command):
    code, out, _ = command("--help")
    assert code == 0
    assert out.startswith("lightning-xai trains a network, or loads one, and explains its validation data")
    assert "perturbation: bidirectional, binary, blur" in out
    assert "max_samples: 64" in out


def test_the_folder_is_made_also_for_an_error(command, here):
    code, _, err = command("folder=new/place", "regions.size=0")
    assert code == 1
    assert err.endswith("The whole trace is in new/place/error.txt.\n")
    assert (here / "new" / "place" / "error.txt").is_file()
