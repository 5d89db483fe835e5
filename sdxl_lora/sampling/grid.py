"""Pictures side by side in rows with their prompts, for people. Draws nothing itself."""

from PIL import Image, ImageDraw, ImageFont, ImageOps

GAP = 10
LABEL_WIDTH = 250


def image_grid(columns, labels, rows, side=192):
    """Rows of prompts, columns of pictures.

    Args:
        columns: [(heading, pictures per row)...], e.g. [("training pictures", 2), ("base", 3)].
        labels: one text per row, written left of it.
        rows: per label the pictures of all columns, in order; None leaves a place empty.
        side: pictures are shown as large as fits into a square of so many pixels.
    Raises:
        ValueError: a row with another number of pictures than the columns have together.
    """
    wanted = sum(count for _, count in columns)
    if any(len(row) != wanted for row in rows) or len(rows) != len(labels):
        raise ValueError(f"Expected {len(labels)} rows of {wanted} pictures, got rows of {[len(row) for row in rows]}.")
    rows = [[image and fitted(image, side) for image in row] for row in rows]
    heights = [max((image.height for image in row if image), default=side) for row in rows]
    width = max((image.width for row in rows for image in row if image), default=side)
    heading_height = 40
    total = LABEL_WIDTH + wanted * (width + GAP) + len(columns) * 2 * GAP
    page = Image.new("RGB", (total, heading_height + sum(heights) + len(rows) * GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    top = heading_height
    for number, (label, row, height) in enumerate(zip(labels, rows, heights, strict=True)):
        pen.multiline_text((GAP, top + height // 2), wrapped(label, pen, font), fill="black", font=font, anchor="lm")
        left, images = LABEL_WIDTH, iter(row)
        for heading, count in columns:
            left += 2 * GAP
            if number == 0:
                pen.text((left, heading_height // 2), heading, fill="black", font=font, anchor="lm")
            for _ in range(count):
                if image := next(images):
                    page.paste(image, (left, top))
                left += width + GAP
        top += height + GAP
    return page


def fitted(image, side):
    """Smaller pictures keep their pixels, as whole squares."""
    times = side // max(image.size)
    if times > 1:
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    return ImageOps.contain(image, (side, side)) if max(image.size) > side else image


def wrapped(text, pen, font):
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) > LABEL_WIDTH - 2 * GAP and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
