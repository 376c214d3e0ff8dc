"""Which files are taken for images, and that what is left out is said: the one filter of training and all commands."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from camify.checkpoint.folder import MANIFEST
from camify.data import ImageFolderDataModule
from camify.data.class_folders import class_folders
from camify.data.image_search import Reason, find_images_below
from camify.errors import DataError
from camify.evaluation.comparison import COMPARISON
from camify.evaluation.evaluation_report import EVALUATION
from camify.evaluation.explained_folder import SETTINGS
from camify.evaluation.images import find_files
from camify.evaluation.labeled_data import find_labeled
from camify.files import CONCEPTS, OUTPUT_MARKERS
from camify.preprocessing import Preprocessing
from camify.task import Classes
from camify.training.run_folder import RUN_MARKER

SHAPE = (24, 24, 3)


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)).save(path, "PNG")


@pytest.fixture
def root(tmp_path):
    """Two classes in both splits, a picture each."""
    for seed, place in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        save(tmp_path / "set" / place / "0.png", seed)
    return tmp_path / "set"


def ready(root, **options):
    data = ImageFolderDataModule(str(root), image_size=24, num_workers=0, **options)
    data.setup()
    return data


def evaluated(root):
    return find_labeled(root, None, Preprocessing(24), Classes.of(None, ("cat", "dog"), 2), 2)


def link(place, target):
    try:
        place.symlink_to(target, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")


def names(search, folder):
    return [path.relative_to(folder).as_posix() for path in search.paths]


def test_training_explaining_and_evaluating_leave_out_the_same_and_say_so(root, capsys):
    folder = root / "val" / "cat"
    for name in ("a.heic", "b.HEIC", "notes.txt", "Makefile", ".DS_Store", "._0.png"):
        (folder / name).write_bytes(b"no image")
    for name in ("no_suffix", "web.jpg_large"):
        save(folder / name, seed=9)
    save(folder / ".thumbnails" / "0.png")
    found = ["0.png", "no_suffix", "web.jpg_large"]
    said = [
        f"{Reason.NAME.value}: 2 .heic, 1 no suffix, 1 .txt; the first is {folder / 'Makefile'}",
        f"{Reason.HIDDEN.value}: 3; the first is {folder / '.DS_Store'}",
    ]
    data, search, labeled = ready(root), find_files([root]), evaluated(root)
    printed = capsys.readouterr().out
    taken = [path.name for path in data.splits["val"].files if path.parent == folder]
    assert taken == [path.name for path in search.paths if path.parent == folder] == found
    assert taken == [path.name for path in labeled.images.files if path.parent == folder]
    assert data.notes == search.left_out.notes() == said
    assert list(labeled.notes[1:]) == said
    assert all(note in printed for note in said)


def test_images_beside_the_class_folders_and_other_splits_are_named(root):
    save(root / "train" / "stray.png")
    save(root / "validation" / "cat" / "0.png")
    (root / "train" / "list.txt").write_text("0")
    (root / "train" / ".cache").mkdir()
    train = root / "train"
    assert ready(root).notes == [
        f"{Reason.NAME.value}: 1 .txt; the first is {train / 'list.txt'}",
        f"{Reason.HIDDEN.value}: 1; the first is {train / '.cache'}",
        f"{Reason.OUTSIDE_CLASSES.value}: 1; the first is {train / 'stray.png'}",
        f"folders of {root} that are none of train, val, test are not read: validation",
    ]


def test_many_endings_are_counted(tmp_path):
    for number, suffix in enumerate(["txt"] * 3 + ["xml"] * 2 + list("abcdef")):
        (tmp_path / f"{number}.{suffix}").touch()
    save(tmp_path / "a.png")
    (note,) = find_images_below(tmp_path).left_out.notes()
    assert ": 3 .txt, 2 .xml, 1 " in note
    assert ", 3 others; the first is " in note


def test_a_folder_without_images_says_what_it_holds(root):
    (root / "val" / "cat" / "0.png").rename(root / "val" / "cat" / "0.heic")
    with pytest.raises(DataError, match=r"val.cat: holds no images that can be read here\. Files left out.*: 1 \.heic"):
        ready(root)


# --- linked folders ---------------------------------------------------------------------------------------


def test_linked_folders_are_followed(root, tmp_path):
    save(tmp_path / "elsewhere" / "deep" / "x.png", 1)
    link(root / "train" / "cat" / "more", tmp_path / "elsewhere")
    search = find_images_below(root / "train" / "cat")
    assert names(search, root / "train" / "cat") == ["0.png", "more/deep/x.png"]
    assert not search.left_out.counts
    assert len(ready(root).splits["train"]) == 3
    assert len(find_files([root]).paths) == 5


@pytest.mark.parametrize("target", [".", "..", "../..", "inner", "../dog"])
def test_links_that_lead_back_are_cut_with_a_line(root, target):
    """To the folder itself, above it, beside itself; only another class's folder is new."""
    cat = root / "train" / "cat"
    save(cat / "inner" / "1.png")
    link(cat / "inner" / "link", target if target == "../dog" else (cat / "inner" / target).resolve())
    link(cat / "alink", cat / "inner")
    search = find_images_below(cat)
    assert names(search, cat) == ["0.png", "inner/1.png"]
    assert search.left_out.first[Reason.LINK] == cat / "alink"
    assert len(ready(root).splits["train"]) == 3
    assert any(note.startswith(Reason.LINK.value) for note in ready(root).notes)


def test_two_folders_that_link_to_each_other(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "2.png")
    link(tmp_path / "a" / "to_b", tmp_path / "b")
    link(tmp_path / "b" / "to_a", tmp_path / "a")
    assert names(find_images_below(tmp_path / "a"), tmp_path / "a") == ["1.png", "to_b/2.png"]
    both = find_images_below(tmp_path)
    assert names(both, tmp_path) == ["a/1.png", "b/2.png"]
    assert both.left_out.counts[Reason.LINK].total() == 2


def test_a_link_to_itself_is_a_file_that_cannot_be_read(root):
    link(root / "train" / "cat" / "loop.png", "loop.png")
    with pytest.raises(DataError, match=r"loop\.png"):
        ready(root)


# --- what camify wrote ------------------------------------------------------------------------------------


def test_what_camify_wrote_is_known_by_its_marks():
    own = {MANIFEST, SETTINGS, COMPARISON, CONCEPTS, EVALUATION, RUN_MARKER, "camify-web.json"}
    assert own == OUTPUT_MARKERS


@pytest.mark.parametrize("marker", sorted(OUTPUT_MARKERS))
def test_results_of_camify_are_no_input(root, marker):
    for place in (root / "val" / "cat" / "out", root / "val" / "evaluation"):
        save(place / "pictures" / "0_cam.png")
        (place / marker).touch()
    assert class_folders(root / "val") == ["cat", "dog"]
    note = f"{Reason.OWN_OUTPUT.value}: 2; the first is {root / 'val' / 'cat' / 'out'}"
    data, search = ready(root), find_files([root / "val"])
    assert len(data.splits["val"]) == len(search.paths) == len(evaluated(root).images) == 2
    assert note in data.notes
    assert note in search.left_out.notes()
    assert note in evaluated(root).notes
    named = root / "val" / "cat" / "out"
    assert names(find_files([named]), named) == ["pictures/0_cam.png"], "what is named is taken"


def test_files_below_the_folder_to_write_are_counted(root):
    out = root / "val" / "cat" / "deep" / "out"
    save(out / "0_cam.png")
    search = find_files([root / "val", out / "0_cam.png"], outside=out)
    assert len(search.paths) == 2
    assert search.left_out.notes() == [f"{Reason.BELOW_OUTPUT.value}: 2; the first is {out}"]


# --- boxes ------------------------------------------------------------------------------------------------


def write_boxes(root, *rows):
    (root / "boxes.csv").write_text("\n".join(["image,x0,y0,x1,y1,label", *rows]) + "\n", encoding="utf-8")


def test_labels_that_fit_no_class_are_counted_with_a_guess(root):
    rows = [f"{split}/cat/0.png,1,1,9,9,cat" for split in ("train", "val")]
    write_boxes(root, *rows, "val/dog/0.png,1,1,9,9,Dog", "train/dog/0.png,1,1,9,9,Dog", "train/dog/0.png,1,1,9,9,dog ",
                "train/cat/0.png,1,1,9,9,zebra", "train/cat/0.png,1,1,9,9,dog")  # fmt: skip
    table = root / "boxes.csv"
    guesses = "2 of label 'Dog' (did you mean dog?); 1 of label 'dog ' (did you mean dog?); 1 of label 'zebra'"
    assert ready(root).notes == [
        f"{table}: 4 boxes fit no class and are left out: {guesses}",
        f"{table}: 1 box is left out, since it is of another class than the image",
        f"{table}: boxes of 1 of 2 images of train, 1 of 2 images of val",
    ]
    (note,) = (note for note in evaluated(root).notes if "no class" in note)
    assert note == f"{table}: 1 box fits no class and is left out: 1 of label 'Dog' (did you mean dog?)"


def test_boxes_of_images_that_do_not_exist_are_named(root):
    write_boxes(root, "val/cat/0.png,1,1,9,9,cat", "val/dog/0.png,1,1,9,9,dog", "val/cat/O.png,1,1,9,9,cat",
                "elsewhere/cat/0.png,1,1,9,9,cat")  # fmt: skip
    assert evaluated(root).notes == (
        f"{root / 'boxes.csv'}: has boxes of 1 image that does not exist; the first is val/cat/O.png",
    )


def test_a_validation_split_without_boxes_is_said(root):
    write_boxes(root, "train/cat/0.png,1,1,9,9,cat")
    data = ready(root)
    (note,) = data.notes
    assert note.startswith(f"{root / 'boxes.csv'}: boxes of 1 of 2 images of train, 0 of 2 images of val; val has none")
    assert [data.splits[split].has_boxes for split in ("train", "val")] == [True, False]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("cp1252", r"boxes\.csv, line 2.*0xe9.*Windows-1252"),
        ("utf-16", r"boxes\.csv.*UTF-16"),
        ("utf-16-le", r"boxes\.csv.*UTF-16"),
    ],
)
def test_other_encodings_are_named(root, encoding, message):
    content = "image,x0,y0,x1,y1,label\ntrain/cat/0.png,1,1,9,9,caf\u00e9\n"
    (root / "boxes.csv").write_bytes(content.encode(encoding))
    with pytest.raises(DataError, match=f"{message}.*Save it as UTF-8"):
        ready(root)
