//! Colours.

/// A colour or weight, as its SGR parameter (ECMA-48).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Paint {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

/// `text` in a colour, when `on`.
pub(crate) fn paint(on: bool, paint: Paint, text: &str) -> String {
    if on { format!("\x1b[{}m{text}\x1b[0m", paint as u8) } else { text.to_owned() }
}
