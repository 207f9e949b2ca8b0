"""The PyTorch network: shapes, bits, calibration, boundary gate."""

import numpy as np
import pytest
from tiny_training import random_input, random_network, tiny_architecture, torch

from tools.train.network import boundary_gate

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


class TestNetwork:
    def test_scores_have_the_size_of_their_scale(self):
        scores = random_network(tiny_architecture())(random_input(side=96))
        assert {stride: tuple(value.shape) for stride, value in scores.items()} == {
            stride: (2, 3, 96 // stride, 96 // stride) for stride in (32, 16, 8, 4)
        }

    def test_finer_branches_are_left_out_if_not_wanted(self):
        network = random_network(tiny_architecture())
        assert list(network(random_input(), scales=(32, 16))) == [32, 16]

    @pytest.mark.parametrize("stream_bits", [8, 0])
    def test_bits_of_every_layer(self, stream_bits):
        network = random_network(tiny_architecture(stream_bits=stream_bits))
        network.set_bits(1, 2)
        assert network.encoder.stem.weight_quantizer.bits == network.branch4.classifier.weight_quantizer.bits == 8
        assert network.encoder.stage1[0].conv1.weight_quantizer.bits == 1
        assert network.encoder.stage1[0].activation1.bits == 2
        stream = network.encoder.stage1[0].output
        assert (stream.stream_quantizer.bits, stream.activation_quantizer.bits) == (stream_bits or 2, 2)
        assert network.branch8.block.output.rounds_once
        network.set_bits(32, 32)
        bits = {module.bits for module in network.modules() if hasattr(module, "bits")}
        assert bits == {32}

    @pytest.mark.parametrize("stream_weight_bits", [0, 4])
    def test_what_projections_and_reductions_read_and_have(self, stream_weight_bits):
        network = random_network(tiny_architecture("resnet50", stream_weight_bits=stream_weight_bits))
        network.set_bits(1, 2)
        found = {}
        for name in ("encoder.stage2.0.downsample", "branch8.reduce", "encoder.stage2.0.conv1"):
            layer = network.get_submodule(name)
            layer.register_forward_pre_hook(
                lambda _, inputs, name=name: found.update({name: inputs[0].unique().numel()})
            )
            found[f"{name} bits"] = layer.weight_quantizer.bits
        network(random_input())
        carried = stream_weight_bits > 0
        for name in ("encoder.stage2.0.downsample", "branch8.reduce"):
            assert found[f"{name} bits"] == (stream_weight_bits if carried else 1)
            assert (found[name] > 4) == carried
        assert found["encoder.stage2.0.conv1 bits"] == 1 and found["encoder.stage2.0.conv1"] <= 4

    def test_equal_channels_still_project_where_the_stride_is_2(self):
        network = random_network(tiny_architecture("resnet50", stage_channels=(16, 16, 16, 16)))
        assert network(random_input())[4].shape == (2, 3, 16, 16)

    def test_calibration_keeps_batch_norm(self):
        network = random_network(tiny_architecture())
        before = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
        network.set_bits(4, 4)
        network.calibrate(random_input())
        assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
        bounds = [stream.output.stream_quantizer.log_bound for stream in network.encoder.stage3]
        assert all(bound.item() != 0 for bound in bounds)

    def test_statistics_are_means_over_all_batches_and_nothing_else_changes(self):
        network = random_network(tiny_architecture()).eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        network.norms_frozen = True
        batches = [random_input(seed) * (1 + seed) for seed in range(3)]
        inputs = []
        hook = network.encoder.stem.norm.register_forward_pre_hook(lambda _, arguments: inputs.append(*arguments))
        network.estimate_norms(iter(batches))
        hook.remove()
        norm = network.encoder.stem.norm
        variances, means = zip(*(torch.var_mean(values, (0, 2, 3)) for values in inputs))
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
        assert norm.momentum == 0.1 and network.norms_frozen and not network.training
        after = network.state_dict()
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed == {name for name in after if "running" in name or "num_batches" in name}

    def test_frozen_norms_train_as_the_network_will_be_used(self):
        network = random_network(tiny_architecture())
        network.estimate_norms([random_input()])
        before = {name: value.clone() for name, value in network.named_buffers()}
        expected = network.eval()(random_input(1))[4]
        assert not torch.equal(network.train()(random_input(1))[4], expected)
        network.load_state_dict(before, strict=False)
        network.norms_frozen = True
        assert torch.equal(network.train()(random_input(1))[4], expected)
        assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
        assert network.encoder.stem.training and not network.encoder.stem.norm.training

    def test_the_gate_opens_at_boundaries_only(self):
        scores = torch.zeros(1, 2, 24, 24)
        scores[:, 0, :, :12], scores[:, 1, :, 12:] = 20, 20
        gate = boundary_gate(scores)[0, 0]
        np.testing.assert_allclose(gate[:, 8:16], 1, atol=1e-6)
        np.testing.assert_allclose(gate[:, :8], 0, atol=1e-6)
        np.testing.assert_allclose(gate[:, 16:], 0, atol=1e-6)
