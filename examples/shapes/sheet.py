"""Pictures side by side with their prompts, for people. Draws nothing itself."""

from PIL import Image, ImageDraw, ImageFont

SCALE = 3
GAP = 10
PROMPT_WIDTH = 250


def sheet(columns, prompts, rows):
    """Rows of prompts, columns of pictures.

    Args:
        columns: [(heading, pictures per row)...], e.g. [("training pictures", 2), ("base", 3)].
        prompts: one text per row, written left of it.
        rows: per prompt the pictures of all columns, in order, all of one size.
    Raises:
        ValueError: a row with another number of pictures than the columns have together.
    """
    wanted = sum(count for _, count in columns)
    if any(len(row) != wanted for row in rows) or len(rows) != len(prompts):
        raise ValueError(
            f"Expected {len(prompts)} rows of {wanted} pictures, got rows of {[len(row) for row in rows]}."
        )
    width, height = (side * SCALE for side in rows[0][0].size)
    heading_height = 40
    total = PROMPT_WIDTH + wanted * (width + GAP) + len(columns) * 2 * GAP
    page = Image.new("RGB", (total, heading_height + len(rows) * (height + GAP)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        top = heading_height + number * (height + GAP)
        pen.multiline_text((GAP, top + height // 2), wrapped(prompt, pen, font), fill="black", font=font, anchor="lm")
        left, pictures = PROMPT_WIDTH, iter(row)
        for heading, count in columns:
            left += 2 * GAP
            if number == 0:
                pen.text((left, heading_height // 2), heading, fill="black", font=font, anchor="lm")
            for _ in range(count):
                page.paste(next(pictures).resize((width, height), Image.Resampling.NEAREST), (left, top))
                left += width + GAP
    return page


def wrapped(text, pen, font):
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) > PROMPT_WIDTH - 2 * GAP and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
