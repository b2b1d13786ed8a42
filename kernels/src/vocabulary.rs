//! The names that the kernels and their callers share.

/// What is applied to a product element by element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// x * sigmoid(x).
    Silu,
    /// GELU by its tanh formula.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// How a convolution moves over height and width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spatial {
    /// Stride 1, zeros around, so that the extents stay (3x3 and 1x1 kernels).
    #[default]
    Same,
    /// Stride 2 after one row of zeros below and one column of zeros to the right (3x3 kernels, even extents).
    Halve,
    /// Like `Same`, after each pixel has become four equal ones.
    Double,
}

/// How a convolution moves over time. It is causal: a frame of the result depends on no later frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Time {
    /// One frame of the result for each new frame, at which the kernel ends.
    #[default]
    Same,
    /// One frame of the result for each pair of new frames, at the second of which the kernel ends.
    Halve,
    /// Like `Same`, but a result of `2 * channels` becomes `channels` with twice the frames: the first half of the
    /// channels holds the even frames.
    Double,
}
