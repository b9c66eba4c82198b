//! The handwritten digits of `digits.txt`, part of the program.

/// One line of the file.
pub struct Digit {
    /// Eight rows of eight, 0 to 1.
    pub pixels: [f32; 64],
    pub label: u32,
}

/// All 1,797, in the order of the file.
pub fn load() -> Result<Vec<Digit>, &'static str> {
    include_str!("digits.txt")
        .lines()
        .map(digit)
        .collect::<Option<_>>()
        .ok_or("digits.txt is not what it should be")
}

fn digit(line: &str) -> Option<Digit> {
    let (label, pixels) = line.split_once(' ')?;
    let pixel = |character: char| Some(character.to_digit(17)? as f32 / 16.0);
    let pixels: Vec<f32> = pixels.chars().map(pixel).collect::<Option<_>>()?;
    Some(Digit { pixels: pixels.try_into().ok()?, label: label.parse().ok()? })
}
