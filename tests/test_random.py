import threading

import torch

from sigmma_sc._random import drawing, generator, kept_random_state, reseed

CPU = torch.device("cpu")


def drawn(n=4):
    return torch.rand(n, generator=generator(CPU))


def test_a_thread_draws_from_its_own_whatever_others_do():
    found, turns = {}, threading.Barrier(3)

    def draw(seed):
        with drawing(seed, CPU):
            numbers = []
            for _ in range(5):
                turns.wait()
                numbers.append(drawn())
            found[seed] = torch.cat(numbers)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        torch.manual_seed(9)
        turns.wait()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        expected = torch.rand(20, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(found[seed], expected)


def test_a_generator_can_be_seeded_again_and_ends_with_its_block():
    assert generator(CPU) is None
    with drawing(0, CPU):
        first = drawn()
        reseed(0)
        assert torch.equal(drawn(), first)
        with drawing(1, CPU):
            assert not torch.equal(drawn(), first)
        assert generator(torch.device("meta")) is None
    assert generator(CPU) is None
    reseed(3)
    expected = torch.rand(4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn(), expected)


def test_the_state_of_torch_is_kept():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with kept_random_state(seed=7):
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(torch.rand(2), expected)
