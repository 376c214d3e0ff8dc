"""A small labeled collection in every format, its numbers written out by hand from the formats' documents.

Two images, 64 x 48 and 40 x 80 pixels; three boxes in camify's convention (``ROWS``).
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

IMAGES = {"cat/Zürich 1.jpg": (64, 48), "dog/b.png": (40, 80)}
ROWS = [
    ("cat/Zürich 1.jpg", 0.0, 0.0, 16.0, 12.0, "cat"),
    ("cat/Zürich 1.jpg", 32.0, 24.0, 64.0, 48.0, "dog"),
    ("dog/b.png", 10.0, 20.0, 30.0, 60.0, "dog"),
]


def picture(path: Path, size: tuple[int, int], orientation: int = 1) -> Path:
    """An image file, given its size as stored and its EXIF tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, exif = Image.new("RGB", size, (90, 120, 60)), Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def pictures(root: Path) -> list[Path]:
    return [picture(root / name, size) for name, size in IMAGES.items()]


def coco(folder: Path) -> Path:
    content = {
        "images": [
            {"id": 10, "file_name": "cat/Zürich 1.jpg", "width": 64, "height": 48},
            {"id": 20, "file_name": "dog/b.png", "width": 40, "height": 80},
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],  # as COCO's: not contiguous
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 17, "bbox": [0, 0, 16, 12], "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 18, "bbox": [32, 24, 32, 24]},
            {"id": 3, "image_id": 20, "category_id": 18, "bbox": [10, 20, 20, 40]},
            {"id": 4, "image_id": 20, "category_id": 18, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }
    return write(folder / "coco.json", json.dumps(content))


VOC = """<annotation><folder>{folder}</folder><filename>{name}</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>
{objects}
</annotation>"""
OBJECT = """<object><name>{}</name><pose>Left</pose><difficult>0</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def voc(folder: Path) -> Path:
    """By the standard: the first pixel is 1, the last one is inside."""
    first = OBJECT.format("cat", 1, 1, 16, 12) + OBJECT.format("dog", 33, 25, 64, 48)
    write(
        folder / "voc" / "Zürich 1.xml",
        VOC.format(folder="cat", name="Zürich 1.jpg", width=64, height=48, objects=first),
    )
    second = OBJECT.format("dog", 11, 21, 30, 60)
    write(folder / "voc" / "b.xml", VOC.format(folder="dog", name="b.png", width=40, height=80, objects=second))
    return folder / "voc"


def yolo(folder: Path) -> Path:
    """The third is a polygon."""
    write(folder / "yolo" / "data.yaml", "names:\n  0: cat\n  1: dog\n")
    write(folder / "yolo" / "labels" / "cat" / "Zürich 1.txt", "0 0.125 0.125 0.25 0.25\n1 0.75 0.75 0.5 0.5\n")
    write(folder / "yolo" / "labels" / "dog" / "b.txt", "1 0.25 0.25 0.75 0.5 0.5 0.75\n")
    return folder / "yolo"


def cvat(folder: Path) -> Path:
    box = '<box label="{}" occluded="0" xtl="{}" ytl="{}" xbr="{}" ybr="{}" z_order="0"></box>'
    first = box.format("cat", "0.00", "0.00", "16.00", "12.00") + box.format("dog", 32, 24, 64, 48)
    content = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<image id="0" name="cat/Zürich 1.jpg" width="64" height="48">{first}</image>
<image id="1" name="dog/b.png" width="40" height="80">
<polygon label="dog" points="10,20;30,20;30,60" z_order="0"></polygon><points label="dog" points="1,1"></points></image>
</annotations>"""
    return write(folder / "cvat.xml", content)


def labelme(folder: Path) -> Path:
    """One file lies beside its image, as LabelMe names it; the second corner is drawn first."""
    shapes = [
        {"label": "cat", "points": [[16, 12], [0, 0]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[32, 24], [64, 48]], "shape_type": "rectangle"},
    ]
    first = {"imagePath": "..\\cat\\Zürich 1.jpg", "imageHeight": 48, "imageWidth": 64, "shapes": shapes}
    polygon = [{"label": "dog", "points": [[10, 20], [30, 20], [30, 60]], "shape_type": "polygon"}]
    second = {"imagePath": "b.png", "imageHeight": 80, "imageWidth": 40, "shapes": polygon, "imageData": None}
    write(folder / "labelme" / "a.json", json.dumps(first))
    write(folder / "labelme" / "b.json", json.dumps(second))
    return folder / "labelme"


def label_studio(folder: Path) -> Path:
    def result(label, x, y, width, height, size, rotation=0):
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation, "rectanglelabels": [label]}
        return {
            "id": "x", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "original_width": size[0],
            "original_height": size[1], "image_rotation": 0, "value": value,
        }  # fmt: skip

    first = [result("cat", 0, 0, 25, 25, (64, 48)), result("dog", 50, 50, 50, 50, (64, 48))]
    second = [result("dog", 25, 25, 50, 50, (40, 80))]
    tasks = [
        {"id": 7, "data": {"image": "/data/upload/1/0a1b2c3d-Z%C3%BCrich_1.jpg"}, "annotations": [{"result": first}]},
        {"id": 8, "data": {"image": "/data/local-files/?d=dog/b.png"}, "annotations": [{"result": second}]},
    ]
    return write(folder / "tasks.json", json.dumps(tasks))


def openimages(folder: Path) -> Path:
    """In this order: X, X, Y, Y."""
    lines = [
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside",
        "Zürich 1,xclick,/m/cat,1,0,0.25,0,0.25,0,0,0,0,0",
        "Zürich 1,xclick,/m/dog,1,0.5,1,0.5,1,0,0,0,0,0",
        "b,xclick,/m/dog,1,0.25,0.75,0.25,0.75,0,0,0,0,0",
        "b,xclick,/m/dog,1,0,1,0,1,0,0,1,0,0",
    ]
    write(folder / "open" / "class-descriptions-boxable.csv", "/m/cat,cat\n/m/dog,dog\n")
    return write(folder / "open" / "train-annotations-bbox.csv", "\n".join(lines) + "\n")


def imagenet_csv(folder: Path) -> Path:
    lines = ["ImageId,PredictionString", "Zürich 1,cat 1 1 16 12 dog 33 25 64 48 ", "b,dog 11 21 30 60 "]
    return write(folder / "LOC_train_solution.csv", "\n".join(lines) + "\n")


def hugging_face(folder: Path) -> Path:
    rows = [
        {
            "file_name": "cat/Zürich 1.jpg",
            "objects": {"bbox": [[0, 0, 16, 12], [32, 24, 32, 24]], "categories": ["cat", "dog"]},
        },
        {"file_name": "dog/b.png", "objects": [{"bbox": [10, 20, 20, 40], "category": "dog"}]},
    ]
    return write(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def cub(folder: Path) -> Path:
    """The class is the image's folder, so the second box is another image's: here only two boxes."""
    write(folder / "cub" / "images.txt", "1 cat/Zürich 1.jpg\n2 dog/b.png\n")
    write(folder / "cub" / "bounding_boxes.txt", "1 0.0 0.0 16.0 12.0\n2 10.0 20.0 20.0 40.0\n")
    return folder / "cub"


def wsol(folder: Path) -> Path:
    """x1 = x + width; the labels are the folders here, so the second box is left out of this sample."""
    write(folder / "wsol" / "image_sizes.txt", "cat/Zürich 1.jpg,64,48\ndog/b.png,40,80\n")
    write(folder / "wsol" / "localization.txt", "cat/Zürich 1.jpg,0,0,16,12\ndog/b.png,10,20,30,60\n")
    return folder / "wsol"


def camify_csv(folder: Path) -> Path:
    lines = ["image,x0,y0,x1,y1,label", *(",".join(map(str, row)) for row in ROWS)]
    return write(folder / "old.csv", "\n".join(lines) + "\n")


SAMPLES = {
    "coco": coco, "voc": voc, "yolo": yolo, "cvat": cvat, "labelme": labelme, "labelstudio": label_studio,
    "openimages": openimages, "imagenet_csv": imagenet_csv, "huggingface": hugging_face, "cub": cub, "wsol": wsol,
    "camify": camify_csv,
}  # fmt: skip


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
