"""Grid of given images in rows with their prompts."""

from PIL import Image, ImageDraw, ImageFont, ImageOps

GAP = 10
LABEL_WIDTH = 250


def image_grid(columns, labels, rows, side=192):
    """Return a page with rows of prompts and columns of images.

    Args:
        columns: [(heading, images per row)...], e.g. [("training images", 2), ("base", 3)].
        labels: one text per row, written left of it.
        rows: per label the images of all columns, in order; None leaves a place empty.
        side: of the square in pixels into which images are fitted.
    Raises:
        ValueError: the number of images in a row differs from that of all columns, or that of rows from the labels'.
    """
    wanted = sum(count for _, count in columns)
    if any(len(row) != wanted for row in rows) or len(rows) != len(labels):
        raise ValueError(f"Expected {len(labels)} rows of {wanted} images, got rows of {[len(row) for row in rows]}.")
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
    """Fit an image into a square; a small one is enlarged by a whole factor, so that its pixels stay sharp."""
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
