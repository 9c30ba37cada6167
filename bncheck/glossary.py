"""What the parameters and buffers of a BatchNorm mean: the texts of `bncheck explain momentum` and its like."""

GLOSSARY: dict[str, str] = {
    "momentum": """\
How much the newest batch weighs in the running statistics.

## Meaning

After each forward pass in train mode, running <- (1 - momentum) * running + momentum * batch. The default is 0.1.
It weighs the *new* value, unlike the momentum of an optimizer, and unlike that of TensorFlow and ONNX, which weighs
the old. momentum=None is no gap: it makes the statistics the plain average over all batches since the last reset.

## Formula

Window: the statistics are worth about (2 - momentum) / momentum batches, 19 for 0.1 and 199 for 0.01. What is left
of the initial values after n updates: (1 - momentum)^n, below 0.001 after 66 updates for 0.1 and 688 for 0.01.

## The usual error

Copying 0.99 from TensorFlow, where 0.01 is meant: then the statistics are those of the last batch, and validation is
noise. momentum=0 counts batches but never moves the statistics; momentum=1 keeps the last batch alone.
A state_dict does not hold momentum.
""",
    "eps": """\
What is added to the variance before the square root.

## Meaning

Keeps the division away from zero where a channel hardly varies. The default is 1e-5; ports from TensorFlow use 1e-3.

## Formula

y = (x - mean) / sqrt(var + eps) * weight + bias

## The usual error

Building the network with another eps than the one it was trained with. The difference is sqrt((var + eps1) / (var +
eps2)) in each channel: nothing for a variance of 1, but 3.2-fold for a variance of 1e-4 and 1e-3 against 1e-5. A
state_dict does not hold eps. In half precision an eps below 6e-8 is zero.
""",
    "affine": """\
Whether the layer has a weight (gamma) and a bias (beta).

## Meaning

With affine=True, weight scales and bias shifts each normalised channel, and both are learned. With affine=False the
layer has neither: gamma is fixed at 1 and beta at 0.

## Formula

y = (x - mean) / sqrt(var + eps) * weight + bias, for each channel

## The usual error

requires_grad=False on weight and bias is taken for freezing the layer. The running statistics are not parameters:
they move with every forward pass in train mode all the same. bncheck infers affine of a state_dict from the key
`weight`.
""",
    "track_running_stats": """\
Whether the layer keeps running statistics.

## Meaning

With True (the default) the layer has the buffers running_mean, running_var and num_batches_tracked, updates them in
train mode and normalises with them in eval mode. With False it has none and normalises by the batch in both modes.

## Formula

Eval mode uses the buffers whenever they exist, whatever the flag says (torch 1.6 and later); train mode updates
them only if it is True.

## The usual error

Turning it off to repair bad results in eval mode. Without tracked statistics each result depends on what else is in the
batch, and the statistics of a small batch at inference are far from those of the population. Setting the flag on an
existing layer does not remove its buffers.
""",
    "training": """\
The mode of the layer: True after train(), False after eval().

## Meaning

In train mode the layer normalises by the batch and updates its running statistics; in eval mode it normalises with
them and changes nothing. Every module starts in train mode.

## Formula

mode x track_running_stats x buffers present decides what forward does; `bncheck inspect` says it for each layer
("as saved").

## The usual error

Forgetting eval() and trusting torch.no_grad(): running statistics are written by forward, not by optimizer.step() and
not by backward. Calling model.train() at the start of each epoch undoes the eval() of a frozen part. A network that is
used inside the training of another is in train mode with it. A state_dict does not hold the mode.
""",
    "num_features": """\
The number of channels, C of an input of shape (N, C, H, W).

## Meaning

Each channel has its own mean, variance, weight and bias, so that all four have shape (C,).

## Formula

BatchNorm2d takes the statistics of a channel over N, H and W: over N*H*W values.

## The usual error

With one value for each channel (a batch of 1 and features of 1x1) train mode raises "Expected more than 1 value per
channel"; with few values the variance of the batch is a poor estimate.
""",
    "running_mean": """\
The exponential average of the batch means, one number for each channel.

## Meaning

What eval mode subtracts. A buffer, not a parameter: no gradient, no optimizer, but saved in the state_dict.

## Formula

running_mean <- (1 - momentum) * running_mean + momentum * mean(batch), starting at 0

## The usual error

Running statistics are written by every forward pass in train mode, also under no_grad and with requires_grad=False.
What goes through the network in train mode (validation data, a dummy input to print shapes) is in them.
""",
    "running_var": """\
The exponential average of the batch variances, one number for each channel.

## Meaning

What eval mode divides by the square root of, after adding eps.

## Formula

running_var <- (1 - momentum) * running_var + momentum * var(batch), starting at 1. The variance that is averaged is
the unbiased one (n - 1); the batch itself is normalised with the biased one (n).

## The usual error

Taking it for the variance of the population: it estimates the variance *within* a batch, which is smaller if batches
differ. It cannot be negative; a converter or a federated average can make it so.
""",
    "num_batches_tracked": """\
The number of forward passes in train mode, as far as anybody counted.

## Meaning

A buffer of one integer. It matters to torch only with momentum=None, where the newest batch weighs 1 /
num_batches_tracked.

## Formula

num_batches_tracked <- num_batches_tracked + 1 in each forward in train mode with track_running_stats, also in one
that then fails.

## The usual error

Taking it for the history of the statistics. Averaged weights (EMA, SWA) have it at 0 or 1 with trained statistics,
many converters write 0, files of torch before 0.4.1 lack it, and a layer that is called twice in a forward counts
two.
""",
}
