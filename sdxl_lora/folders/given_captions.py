"""Assign captions to images, from files beside them and from tables. Captions without an image are reported."""

from pathlib import Path

from sdxl_lora.errors import DataError
from sdxl_lora.folders.caption_files import CAPTION_SUFFIXES, ByName, images_of, read_caption
from sdxl_lora.folders.caption_tables import OF_DATASETS, NoTable, Table, is_metadata, may_be_table, read_table
from sdxl_lora.folders.found import Found, Source
from sdxl_lora.images.decode import is_image_name

MOST_NAMED = 20  # lines of one table that are reported one by one


def read_tables(found: Found, directories: dict[Path, list[str]]) -> list[Table]:
    """Read every file with captions for several images, metadata first; report files that hold none."""
    tables = []
    for directory, files in directories.items():
        names = ByName(filter(is_image_name, files), str)
        for file in sorted(filter(may_be_table, files), key=lambda file: (not is_metadata(file), file)):
            path = directory / file
            if file.startswith(".") or (file.lower().endswith(".json") and images_of(file, names)):
                continue  # reported as hidden, or a caption file
            try:
                tables.append(read_table(path))
            except (NoTable, DataError) as error:
                if file in OF_DATASETS:
                    found.problems.append(str(error) if isinstance(error, DataError) else f"{path} {error}")
                else:
                    found.other_files[found.shown(path)] = str(error).removeprefix(f"{path} ")
    return tables


def add_captions(found: Found, directories: dict[Path, list[str]], tables: list[Table]) -> None:
    """Add captions from files beside the images, else from tables; tables of prepared datasets come first."""
    index = Index(found)
    for table in tables:
        if table.is_prepared:
            leave_out_others(found, table, add_table(found, table, index))
    sources, left_out = by_directory(found)
    are_tables = {table.path for table in tables}
    for directory, files in directories.items():
        paths = [directory / file for file in files if is_caption_file(file)]
        paths = [path for path in paths if path not in are_tables and found.shown(path) not in found.other_files]
        give_captions(found, paths, sources.get(directory, []), left_out.get(directory, []))
    index = Index(found)
    for table in tables:
        if not table.is_prepared:
            add_table(found, table, index)


def by_directory(found: Found) -> tuple[dict[Path, list[Source]], dict[Path, list[str]]]:
    """Return the images by folder, and the names of images left out by folder."""
    sources: dict[Path, list[Source]] = {}
    for source in found.sources:
        sources.setdefault(source.path.parent, []).append(source)
    left_out: dict[Path, list[str]] = {}
    for name in found.left_out:
        path = found.folder / name
        left_out.setdefault(path.parent, []).append(path.name)
    return sources, left_out


def give_captions(found: Found, paths: list[Path], sources: list[Source], left_out: list[str]) -> None:
    """Assign the captions in one folder's files to its images."""
    images, others = ByName(sources, lambda source: source.path.name), ByName(left_out, str)
    of_image: dict[str, tuple[Source, list[Path]]] = {}
    for path in paths:
        owners = images_of(path.name, images)
        if len(owners) == 1:
            of_image.setdefault(owners[0].name, (owners[0], []))[1].append(path)
        elif owners:
            both = " and ".join(source.name for source in owners)
            found.problems.append(
                f"{both} both map to {found.shown(path)}: rename one of them, and give each its caption"
            )
        elif names := images_of(path.name, others):
            found.other_files[found.shown(path)] = f"a caption of {names[0]}, which is left out"
        else:
            found.other_files[found.shown(path)] = "a caption, but no image has this name"
    for source, files in of_image.values():
        give_caption(found, source, sorted(files, key=lambda path: preference(path, source)))


def preference(path: Path, source: Source) -> tuple[int, int, str]:
    """Return the sort key of a caption file; the smallest is used: a.txt before a.png.txt before A.txt."""
    exact = (source.path.stem, source.path.name)
    exactness = exact.index(path.stem) if path.stem in exact else len(exact)
    return CAPTION_SUFFIXES.index(path.suffix.lower()), exactness, path.name


def give_caption(found: Found, source: Source, paths: list[Path]) -> None:
    """Assign the first caption of these files to an image that has none."""
    for path in paths:
        try:
            caption = read_caption(path)
        except DataError as error:
            found.problems.append(str(error))
            continue
        if caption is None:
            found.other_files[found.shown(path)] = "holds no caption"
        elif source.caption is not None:
            found.warn(source.name, f"{path.name} is not used: {Path(source.caption_from or '').name} is there")
        else:
            source.caption, source.caption_from = checked(found, caption, path, source), found.shown(path)
            if not caption:
                found.warn(source.name, f"{path.name} is empty")


def checked(found: Found, caption: str, path: Path, source: Source) -> str:
    """Return the caption; report a problem if it is not valid UTF-8, such as half an emoji escaped in JSON."""
    try:
        caption.encode()
    except UnicodeEncodeError:
        found.problems.append(f"{path}: the caption of {source.name} holds half a character: write it again")
    return caption


class Index:
    """Lookup of images by the names in tables."""

    def __init__(self, found: Found):
        self.by_path = ByName(found.sources, lambda source: source.path.as_posix())
        self.by_name = ByName(found.sources, lambda source: source.path.name)

    def get(self, file: str, table: Table) -> Source | None:
        """Return the image at this path; unless the table is metadata, else the only one so named below its folder."""
        owners = self.by_path.get(table.path_of(file).as_posix())
        if not owners and not table.is_metadata:
            named = self.by_name.get(file.replace("\\", "/").rsplit("/", 1)[-1])
            owners = [source for source in named if source.path.is_relative_to(table.path.parent)]
        return owners[0] if len(owners) == 1 else None


def add_table(found: Found, table: Table, index: Index) -> list[Source]:
    """Assign a table's captions to images that have none of their own; return the images it names."""
    name = found.shown(table.path)
    named, missing, unused = [], [], []
    for line in table.lines:
        source = index.get(line.file, table)
        if source is None:
            missing.append(line.file)
            continue
        named.append(source)
        if table.is_metadata:
            found.lines.append((source, line, table))
        text = line.captions[0] if line.text is None and line.captions else line.text
        if text is None:
            continue
        if source.caption is None:
            source.caption, source.caption_from = checked(found, text, table.path, source), name
            source.captions = tuple(checked(found, one, table.path, source) for one in line.captions)
        elif source.caption_from != name and text.split() != source.caption.split():
            unused.append(source.name)
    if not named and not table.is_metadata:
        found.other_files[name] = "names no image here"
        return named
    say_missing(found, table, missing)
    if unused:
        found.warn(name, f"its captions of {listed(unused)} are not used: files beside the images take precedence")
    return named


def say_missing(found: Found, table: Table, missing: list[str]) -> None:
    name = found.shown(table.path)
    if table.is_metadata:
        found.missing += [f"{name} names {file!r}" for file in missing]
    for file in missing[:MOST_NAMED]:
        shown = found.shown(table.path_of(file)) if table.path_of(file).is_relative_to(found.folder) else file
        reason = f"left out: {found.left_out[shown]}" if shown in found.left_out else "not there"
        found.warn(name, f"names {file!r}, which is {reason}")
    if len(missing) > MOST_NAMED:
        found.warn(name, f"names {len(missing) - MOST_NAMED} more that are not there")


def listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def leave_out_others(found: Found, table: Table, named: list[Source]) -> None:
    """Drop the images of a prepared dataset whose lines were deleted from its table."""
    names = {source.name for source in named}
    others = [source for source in found.sources if source.name not in names]
    others = [source for source in others if source.path.is_relative_to(table.path.parent)]
    for source in others:
        found.left_out[source.name] = f"{found.shown(table.path)} does not name it"
    gone = {source.name for source in others}
    found.sources = [source for source in found.sources if source.name not in gone]


def is_caption_file(file: str) -> bool:
    return file.lower().endswith(CAPTION_SUFFIXES) and not file.startswith(".") and not is_metadata(file)
