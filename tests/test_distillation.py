"""Distillation: what is compared, with whom, and that it is learned."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tiny_training import random_input, random_network, tiny_architecture, torch

from tools.train.distillation import Teacher, distillation_loss, recorded_streams
from tools.train.errors import TrainingError

SCALES = (32, 16, 8, 4)

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


def loss_of(student, teacher, images, scales=SCALES):
    with recorded_streams(student) as streams:
        scores = student(images, scales)
    return distillation_loss(scores, streams, *teacher(images, scales))


def test_hand_computed_loss():
    teacher_scores = {32: torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)}
    scores = {32: torch.tensor([0.0, 0.0]).view(1, 2, 1, 1)}
    # Probabilities 1/4 and 3/4 against 1/2 and 1/2; squared errors 1 and 4 over squares 1 and 9, 1 over 4.
    divergence = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    streams = [torch.tensor([2.0, 5.0]), torch.tensor([1.0])]
    teacher_streams = [torch.tensor([1.0, 3.0]), torch.tensor([2.0])]
    loss = distillation_loss(scores, streams, teacher_scores, teacher_streams)
    assert loss.item() == pytest.approx(divergence + 5 / 10 + 1 / 4)


def test_identical_networks_have_no_distance():
    network = random_network(tiny_architecture()).eval()
    teacher = Teacher(random_network(tiny_architecture()))
    assert loss_of(network, teacher, random_input()).item() == pytest.approx(0, abs=1e-6)
    assert loss_of(random_network(tiny_architecture(), seed=1).eval(), teacher, random_input()).item() > 0.1


def test_the_streams_are_those_at_the_ends_of_the_blocks_and_recorded_anew():
    network = random_network(tiny_architecture()).eval()
    for _ in range(2):
        with recorded_streams(network) as streams, torch.no_grad():
            network(random_input())
        blocks = [(2, 8, 16, 16), (2, 8, 8, 8), (2, 16, 4, 4), (2, 16, 2, 2)]
        assert [tuple(stream.shape) for stream in streams] == [shape for shape in blocks for _ in range(2)]
    # In floating point the activation that the next stage reads is the stream itself.
    ends = zip(streams[1::2], network.encoder(random_input()), strict=True)
    assert all(torch.equal(stream, read) for stream, read in ends)


@pytest.mark.parametrize("stream_bits", [8, 0])
def test_a_low_bit_student_comes_nearer_to_its_teacher(stream_bits):
    teacher = Teacher(random_network(tiny_architecture(stream_bits=stream_bits)))
    student = random_network(tiny_architecture(stream_bits=stream_bits))
    student.set_bits(2, 2)
    student.calibrate(random_input())
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss = loss_of(student, teacher, random_input())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


@pytest.mark.parametrize("bits", [(32, 32), (2, 4)])
def test_the_teacher_says_what_its_network_says_in_evaluation_mode(bits):
    network = random_network(tiny_architecture())
    network.set_bits(*bits)
    network.estimate_norms([random_input()])
    network.calibrate(random_input())
    scores, streams = Teacher(network)(random_input(), SCALES)
    with recorded_streams(network.eval()) as expected_streams, torch.no_grad():
        expected = network(random_input(), SCALES)
    for tensor, like in zip((*scores.values(), *streams), (*expected.values(), *expected_streams), strict=True):
        # A sum in another order may round one value to the next level.
        close = torch.isclose(tensor, like, rtol=1e-4, atol=1e-4)
        assert close.float().mean() > 0.95


def test_relative_error_has_its_gradient():
    x, target = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    x.requires_grad_(True)
    loss = distillation_loss({}, [x], {}, [target])
    plain = (x - target).square().mean() / target.square().mean()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(3 * loss, x)
    (expected,) = torch.autograd.grad(3 * plain, x)
    torch.testing.assert_close(gradient, expected)


def test_the_teacher_is_frozen():
    network = random_network(tiny_architecture()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    teacher = Teacher(network)
    scores, streams = teacher(random_input(), SCALES)
    assert not any(tensor.requires_grad for tensor in (*scores.values(), *streams))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "b", "d")}, r"the teacher's classes is \('a', 'b', 'd'\), but the student's is"),
        ({"stage_channels": (8, 8, 16, 32)}, "the teacher's stage_channels is"),
        ({"encoder": "resnet34"}, "the teacher's encoder is 'resnet34', but the student's is 'resnet18'"),
    ],
)
def test_a_teacher_of_another_architecture_is_refused(changes, message):
    student = random_network(tiny_architecture())
    with pytest.raises(TrainingError, match=message):
        Teacher(random_network(tiny_architecture(**changes))).check(student)


def test_bits_stream_and_reconstruction_of_the_teacher_may_differ():
    student = random_network(tiny_architecture(reconstruction="convolution"))
    student.set_bits(1, 2)
    teacher = random_network(replace(tiny_architecture(), stream_bits=0))
    teacher.set_bits(8, 8)
    teacher.calibrate(random_input())
    Teacher(teacher).check(student)
    assert torch.isfinite(loss_of(student, Teacher(teacher), random_input()))
