"""Class colours: the colour map of PASCAL VOC."""

import numpy as np

_VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()


def voc_palette(ids):
    """Colours that PASCAL VOC gives to class ids; 0 is black.

    Parameters
    ----------
    ids : sequence of int
        Class ids, 0 to 255.

    Returns
    -------
    ndarray of uint8, shape (len(ids), 3)
        Red, green, blue. Each triple of an id's bits, lowest first, sets one bit of red, green and blue, highest first.
    """
    bits = (np.asarray(ids, np.uint8)[:, None] >> np.arange(8)) & 1
    palette = np.zeros((len(bits), 3), np.uint8)
    for position in range(8):
        palette[:, position % 3] |= (bits[:, position] << (7 - position // 3)).astype(np.uint8)
    return palette


def palette_for(classes):
    """Colours for a model's classes.

    Parameters
    ----------
    classes : sequence of str
        Class names; the position is the class id.

    Returns
    -------
    ndarray of uint8, shape (len(classes), 3)
        The usual colours if all are classes of PASCAL VOC, otherwise its colours in order. Black is for background
        alone.
    """
    if set(classes) <= set(_VOC_NAMES):
        return voc_palette([_VOC_NAMES.index(name) for name in classes])
    first = 0 if classes[0] == "background" else 1
    return voc_palette(range(first, first + len(classes)))
