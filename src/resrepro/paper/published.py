"""Numbers that the paper and other reproductions published, for CIFAR-10."""

from dataclasses import dataclass

PAPER = "He et al. 2015, table 6"
AMARTYN = "a-martyn/resnet (one seed, 164 epochs)"
AKAMASTER = "akamaster/pytorch_resnet_cifar10 (best)"


@dataclass(frozen=True)
class Published:
    """Test errors of a net in percent, and what they are.

    Attributes:
        paper: the paper's, as a number to compare with.
        paper_text: the same with what must be said of it.
        amartyn: a-martyn/resnet's final training and test error.
        akamaster: akamaster's test error.
    """

    paper: float | None = None
    paper_text: str = ""
    amartyn: tuple[float, float] | None = None
    akamaster: float | None = None


PUBLISHED = {
    ("plain", 20): Published(9.5, "~9.5 (figure 6)", (0.74, 9.69)),
    ("plain", 32): Published(10.0, "~10 (figure 6)", (0.79, 10.04)),
    ("plain", 44): Published(12.0, "~12 (figure 6)", (2.76, 11.56)),
    ("plain", 56): Published(13.5, "~13.5 (figure 6)", (3.33, 13.07)),
    ("plain", 110): Published(None, "> 60 (not displayed)"),
    ("residual", 20): Published(8.75, "8.75", (0.40, 8.04), 8.27),
    ("residual", 32): Published(7.51, "7.51", (0.12, 7.79), 7.37),
    ("residual", 44): Published(7.17, "7.17", (0.05, 7.51), 6.90),
    ("residual", 56): Published(6.97, "6.97", (0.04, 7.46), 6.61),
    ("residual", 110): Published(6.61, "6.61 ± 0.16 (5), best 6.43", None, 6.32),
    ("residual", 1202): Published(7.93, "7.93", None, 6.18),
}
