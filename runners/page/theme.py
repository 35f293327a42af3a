"""Colours and fonts of the page. The fonts are those of the system: nothing is downloaded."""

import gradio as gr

# The middle colour of the spectrograms (matplotlib's magma) with darker and lighter shades.
PLUM = gr.themes.Color(
    name="plum",
    c50="#fdf4f8",
    c100="#fae6ef",
    c200="#f5cbdf",
    c300="#eda3c5",
    c400="#e277a8",
    c500="#cb4a86",
    c600="#a92f6b",
    c700="#8a2458",
    c800="#6b1d46",
    c900="#4d1834",
    c950="#2e0d1f",
)


def build_theme() -> gr.themes.Base:
    """Return a Gradio theme of greys with one accent colour."""
    return gr.themes.Base(
        primary_hue=PLUM,
        secondary_hue=PLUM,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="#fafafa",
        body_background_fill_dark="#111113",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_background_fill="#ffffff",
        block_background_fill_dark="#19191c",
        block_border_width="1px",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_cancel_background_fill="#ffffff",
        button_cancel_background_fill_dark="#19191c",
        button_cancel_text_color="#a11212",
        button_cancel_text_color_dark="#fca5a5",
        button_cancel_border_color="#d9a3a3",
        button_cancel_border_color_dark="#7f3333",
    )
