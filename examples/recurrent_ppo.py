"""Recurrent PPO with held masks: a policy with dropout whose probability ratios begin at 1.

    python -m examples.recurrent_ppo

PPO (Schulman et al. 2017) weighs each action by the ratio of its new probability to that with which it was taken. With
dropout, the policy that acted had certain masks, and an update that draws others compares two different policies. Here
``hold_masks`` keeps one mask for an episode, whose steps come one at a time, and its pair of numbers goes into the
update, which computes all steps in one call: the same masks, bit for bit, so that the first ratio is 1.

The task needs memory: a cue is shown in the first step alone, and the action in the last step has to repeat it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import fused_rnn_dropout as frd

CUES = 3


class Policy(nn.Module):
    """From observations (T, B, CUES + 1) to logits (T, B, CUES), values (T, B), and the state."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.rnn = frd.GRU(CUES + 1, units, hidden_dropout=0.1, zoneout_h=0.05)
        self.actor, self.critic = nn.Linear(units, CUES), nn.Linear(units, 1)

    def forward(
        self, observations: Tensor, state: Tensor | None = None, rng: Tensor | None = None
    ) -> tuple[Categorical, Tensor, Tensor]:
        out, state = self.rnn(observations, state, rng=rng)
        return Categorical(logits=self.actor(out)), self.critic(out)[..., 0], state


class Rollout(NamedTuple):
    """Episodes of T steps, (T, B, ...), and the pair of numbers that their masks come from."""

    observations: Tensor
    actions: Tensor
    log_probabilities: Tensor
    rewards: Tensor
    rng: Tensor


def observation(cue: Tensor, step: int, steps: int) -> Tensor:
    """(1, B, CUES + 1): the cue in the first step; a bell, the last entry, in the last."""
    shown = nn.functional.one_hot(cue, CUES).float() * (step == 0)
    bell = torch.full((len(cue), 1), float(step == steps - 1))
    return torch.cat((shown, bell), dim=1)[None]


@torch.no_grad()
def act(policy: Policy, steps: int, batch: int) -> Rollout:
    """Plays ``batch`` episodes, one step at a time, as a simulator would have it."""
    cue = torch.randint(CUES, (batch,))
    found, state = [], None
    with frd.hold_masks(policy) as held:
        for step in range(steps):
            seen = observation(cue, step, steps)
            chosen, _, state = policy(seen, state)
            action = chosen.sample()
            reward = (action[0] == cue).float() * (step == steps - 1)
            found.append((seen[0], action[0], chosen.log_prob(action)[0], reward))
        rng = held.rng["rnn"]
    assert isinstance(rng, Tensor)
    observations, actions, log_probabilities, rewards = map(torch.stack, zip(*found, strict=True))
    return Rollout(observations, actions, log_probabilities, rewards, rng)


def update(policy: Policy, optimizer: torch.optim.Optimizer, played: Rollout, epochs: int, held: bool) -> Tensor:
    """Some epochs of PPO; returns the ratios of the first, which are 1 with held masks."""
    returns = played.rewards.flip(0).cumsum(0).flip(0)
    first = None
    for _ in range(epochs):
        chosen, values, _ = policy(played.observations, rng=played.rng if held else None)
        ratio = (chosen.log_prob(played.actions) - played.log_probabilities).exp()
        first = ratio.detach() if first is None else first
        advantage = returns - values.detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        loss = 0.5 * (returns - values).square().mean() - gain - 0.01 * chosen.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
    assert first is not None
    return first


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Returns the mean reward of the last rollouts, at most 1, and how far the first ratios were from 1."""
    parser = argparse.ArgumentParser(prog="python -m examples.recurrent_ppo", description="PPO with dropout.")
    for name, default in (("updates", 80), ("steps", 12), ("batch", 128), ("units", 48), ("epochs", 4)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--draw-anew", action="store_true", help="let the updates draw masks of their own")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    policy = Policy(options.units)
    optimizer = torch.optim.Adam(policy.parameters(), 5e-3)
    rewards: list[float] = []
    farthest = 0.0
    for number in range(options.updates):
        played = act(policy, options.steps, options.batch)
        first = update(policy, optimizer, played, options.epochs, not options.draw_anew)
        rewards.append(float(played.rewards.sum(0).mean()))
        farthest = max(farthest, float((first - 1).abs().max()))
        if (number + 1) % max(1, options.updates // 8) == 0:
            print(f"update {number + 1}: reward {rewards[-1]:.2f}, first ratios within {farthest:.1e} of 1", flush=True)
    recent = rewards[-max(1, options.updates // 8) :]
    print(f"reward at the end {sum(recent) / len(recent):.2f}; by chance it is {1 / CUES:.2f}")
    return sum(recent) / len(recent), farthest


if __name__ == "__main__":
    main()
